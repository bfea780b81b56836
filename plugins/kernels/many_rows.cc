#include "many_rows.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "memory.h"

namespace doge {
namespace {

const float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kMany = 4;
constexpr int64_t kMost = 1 << 22;  // floats
constexpr int64_t kRowsAtOnce = 48;

Scratch<float>& scratch() {
  thread_local Scratch<float> memory;
  return memory;
}

}  // namespace

bool ManyRows::pays(int64_t batch, int64_t count, int64_t panels) {
  return batch >= kMany && count > 1 && panels >= 2 * count && batch * panels * (kPanel + 2) <= kMost;
}

ManyRows::ManyRows(const Packed& weight, const LogitScreen* screen, int64_t batch, int64_t count)
    : weight_(weight), screen_(screen), batch_(batch), count_(count), panels_(weight.panels()) {
  values_ = scratch().get(static_cast<size_t>(batch * panels_ * (kPanel + 2)));
  lowest_ = values_ + batch * panels_ * kPanel;
  highest_ = lowest_ + batch * panels_;
}

void ManyRows::look(int64_t p, const float* floats, const uint8_t* digits, size_t stride, const float* reach) {
  const int64_t k = weight_.k(), width = std::min(kPanel, weight_.n() - p * kPanel), all = panels_ * kPanel;
  for (int64_t first = 0; first < batch_; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, batch_ - first);
    float* out = values_ + first * all + p * kPanel;
    const void* x = stride ? static_cast<const void*>(digits + static_cast<size_t>(first) * stride) : floats + first * k;
    const int64_t ldx = stride ? static_cast<int64_t>(stride) : k;
    if (screen_)
      screen_->multiply(p, count, x, ldx, out, all);
    else
      weight_.multiply(p, count, x, ldx, out, all);
    for (int64_t r = 0; r < count; r++) {
      float* value = out + r * all;
      float bounds[kPanel], *low = value, *high = value;
      std::fill(value + width, value + kPanel, kNone);
      if (screen_) {
        std::copy_n(value, kPanel, low = bounds);
        screen_->lower(p, reach[first + r], low);
        screen_->upper(p, reach[first + r], value, high);
      }
      lowest_[(first + r) * panels_ + p] = isa().largest(width, low);
      highest_[(first + r) * panels_ + p] = screen_ ? isa().largest(width, high) : lowest_[(first + r) * panels_ + p];
    }
  }
}

void ManyRows::choose(int64_t b, const float* floats, const uint8_t* digits,
                      std::vector<std::pair<float, int64_t>>* tokens) const {
  thread_local std::vector<float> order;
  const float* lowest = lowest_ + b * panels_;
  order.assign(lowest, lowest + panels_);
  for (float& value : order) value = value >= kNone ? value : kNone;
  const auto nth = order.begin() + static_cast<std::ptrdiff_t>(count_) - 1;
  std::nth_element(order.begin(), nth, order.end(), std::greater<float>());
  const float floor = *nth;
  tokens->clear();
  for (int64_t p = 0; p < panels_; p++) {
    if (highest_[b * panels_ + p] < floor) continue;
    const float* value = values_ + (b * panels_ + p) * kPanel;
    const int64_t width = std::min(kPanel, weight_.n() - p * kPanel);
    const uint64_t real = width == kPanel ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
    for (uint64_t bits = isa().not_below(value, floor) & real; bits; bits &= bits - 1)
      tokens->emplace_back(value[__builtin_ctzll(bits)], p * kPanel + __builtin_ctzll(bits));
  }
  if (screen_)
    screen_->exact(floats, digits, tokens->size(), [&](size_t i) { return (*tokens)[i].second; },
                   [&](size_t i, float value) { (*tokens)[i].first = value; });
}

}  // namespace doge
