#include "screen.h"

#include <cmath>
#include <cstring>

#include "half.h"

namespace doge {
namespace {

// The largest block that int8 panels take for rows of k; 0 where there is none.
int64_t block_of(int64_t k) {
  for (int64_t block = 128; block >= 4; block -= 4)
    if (k % block == 0) return block;
  return 0;
}

}  // namespace

Screen::Screen(const Matrix& weight) : original_(weight) {
  const int64_t n = weight.n, k = weight.k, block = block_of(k);
  if ((weight.dtype != Dtype::float32 && weight.dtype != Dtype::float16) || block == 0) return;
  std::vector<int8_t> copy(static_cast<size_t>(n * k));
  std::vector<uint16_t> scales(static_cast<size_t>(n * (k / block)));
  error_.assign(static_cast<size_t>((n + kPanel - 1) / kPanel * kPanel), 0.0f);
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t token = 0; token < n; token++) {
    read_row(weight, token, row.data());
    double error = 0, size = 0;
    for (int64_t b = 0; b < k / block; b++) {
      const float* w = row.data() + b * block;
      const float largest = std::fmax(isa().largest(block, w), [&] {
        float least = 0;
        for (int64_t i = 0; i < block; i++) least = std::fmin(least, w[i]);
        return -least;
      }());
      const uint16_t half = float_to_half(largest / 127.0f);
      const float scale = half_to_float(half), inverse = scale > 0 ? 1.0f / scale : 0.0f;
      scales[static_cast<size_t>(token * (k / block) + b)] = half;
      for (int64_t i = 0; i < block; i++) {
        const float q = std::fmin(127.0f, std::fmax(-127.0f, std::nearbyint(w[i] * inverse)));
        copy[static_cast<size_t>(token * k + b * block + i)] = static_cast<int8_t>(q);
        const double off = static_cast<double>(w[i]) - static_cast<double>(q) * static_cast<double>(scale);
        error += off * off;
        size += static_cast<double>(w[i]) * static_cast<double>(w[i]);
      }
    }
    if (!(std::isfinite(error) && std::isfinite(size))) {  // nothing can be certified
      error_.clear();
      return;
    }
    // Roundings, each a part of |w| |x|: both sums, (k + 2) * 2^-24 each; the digits of x, 2^-16 sqrt(k) of its
    // largest element each, so at most 2^-16 sqrt(k) |w| |x|.
    const double roundings = static_cast<double>(2 * k + 8) * 0x1p-24 + std::sqrt(static_cast<double>(k)) * 0x1p-15;
    const double bound = std::sqrt(error) + roundings * (std::sqrt(size) + std::sqrt(error));
    error_[static_cast<size_t>(token)] = static_cast<float>(bound * (1 + 0x1p-20));
  }
  Matrix quantized{Dtype::int8, n, k, copy.data(), scales.data(), block};
  copy_ = Packed(quantized);
}

float Screen::reach(const float* x, const uint8_t*) const {
  double squares = 0;
  for (int64_t i = 0; i < original_.k; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return static_cast<float>(std::sqrt(squares) * (1 + 0x1p-20));
}

void Screen::bound(int64_t p, float reach, float* values, float* upper) const {
  const float* error = error_.data() + p * kPanel;
  for (int64_t i = 0; i < kPanel; i++) {
    const float margin = reach * error[i], value = values[i];
    upper[i] = value + margin;
    values[i] = value - margin;
  }
}

void Screen::compute(const float* x, size_t count, const int64_t* tokens, float* values) const {
  const auto rows = static_cast<int64_t>(count);
  if (original_.dtype == Dtype::float32) {
    const float* row[64];
    for (size_t i = 0; i < count; i++) row[i] = static_cast<const float*>(original_.data) + tokens[i] * original_.k;
    isa().in_order_f32(rows, original_.k, x, row, values);
  } else {
    const uint16_t* row[64];
    for (size_t i = 0; i < count; i++) row[i] = static_cast<const uint16_t*>(original_.data) + tokens[i] * original_.k;
    isa().in_order_f16(rows, original_.k, x, row, values);
  }
}

}  // namespace doge
