// What a head multiplies: the last position of each row.
#include <algorithm>

#include "half.h"
#include "head.h"

namespace doge {
namespace {

constexpr int64_t kFew = 2;  // so few rows every worker prepares for itself

}  // namespace

LastRows::LastRows(const Head::Parts& parts, const Packed& weight, const LogitScreen* screen, Dtype dtype, int64_t batch,
                   int64_t sequence, const void* hidden, const int64_t* wanted)
    : parts_(parts), weight_(weight), screen_(screen), dtype_(dtype), batch_(batch), sequence_(sequence),
      stride_(weight.quantized() ? quantized_bytes(weight.k(), weight.block()) : 0), hidden_(hidden),
      wanted_(wanted) {
  if (sequence <= 0) throw Error("There is no last position in an empty sequence.");
  if (batch_ <= kFew) return;
  floats_.resize(static_cast<size_t>(batch * weight.k()));
  digits_.get(stride_ * static_cast<size_t>(batch) + 1);
  reach_.resize(static_cast<size_t>(batch));
}

LastRows::Normed LastRows::prepare(Team::Worker& worker) {
  const int64_t k = weight_.k();
  const auto fill = [&](const Normed& rows, int64_t b) {
    float* x = rows.floats + b * k;
    uint8_t* digits = rows.digits + static_cast<size_t>(b) * stride_;
    read_floats(dtype_, hidden_, (wanted_ ? wanted_[b] : b * sequence_ + sequence_ - 1) * k, k, x);
    isa().rms_norm(x, parts_.norm.data(), x, k, parts_.epsilon);
    if (stride_) isa().quantize_row(x, k, weight_.block(), digits);
    rows.reach[b] = screen_ ? screen_->reach(x, digits) : 0.0f;
  };
  if (batch_ > kFew) {
    const Normed rows{floats_.data(), digits_.get(stride_ * static_cast<size_t>(batch_) + 1), reach_.data(), stride_};
    worker.phase(batch_, [&](int64_t b) { fill(rows, b); });
    return rows;
  }
  thread_local Scratch<uint8_t> own_digits;
  thread_local Scratch<float> own_floats;
  float* own = own_floats.get(static_cast<size_t>(batch_ * k + kFew));
  const Normed rows{own + kFew, own_digits.get(stride_ * kFew + 1), own, stride_};
  for (int64_t b = 0; b < batch_; b++) fill(rows, b);
  return rows;
}

void announce_head(const Packed& weight, const Team::Worker& worker, PrefetchQueue* queue) {
  const int64_t chunks = (weight.panels() + kHeadPanels - 1) / kHeadPanels;
  const int64_t end = std::min(worker.end(chunks) * kHeadPanels, weight.panels());
  for (int64_t p = worker.first(chunks) * kHeadPanels; p < end; p++) weight.announce(p, queue);
  queue->mark();
}

}  // namespace doge
