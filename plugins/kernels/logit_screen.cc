#include "logit_screen.h"

#include <cmath>
#include <cstring>

#include "half.h"
#include "memory.h"

namespace doge {
namespace {

// The largest block that int8 panels take for rows of k; 0 where there is none.
int64_t block_of(int64_t k) {
  for (int64_t block = 128; block >= 4; block -= 4)
    if (k % block == 0) return block;
  return 0;
}

}  // namespace

LogitScreen::LogitScreen(const Matrix& weight) : original_(weight) {
  error_.assign(static_cast<size_t>((weight.n + kPanel - 1) / kPanel * kPanel), 0.0f);
  const int64_t block = block_of(weight.k);
  if ((weight.dtype == Dtype::float32 || weight.dtype == Dtype::float16) && block > 0) copy_floats(block);
  if (weight.dtype == Dtype::int8 && weight.block % 8 == 0) copy_int8();
}

LogitScreen::LogitScreen(const Matrix& weight, const Packed& packed) : original_(weight), rough_(true) {
  if (!packed.quantized() || (weight.dtype == Dtype::int8 ? isa().rough_i8 : isa().rough_i4) == nullptr) return;
  error_.assign(static_cast<size_t>(packed.panels() * kPanel), 0.0f);
  const int64_t k = weight.k, blocks = k / weight.block;
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t token = 0; token < weight.n; token++) {
    read_row(weight, token, row.data());
    double size = 0;
    for (float w : row) size += static_cast<double>(w) * static_cast<double>(w);
    for (int64_t b = 0; b < blocks; b++)
      if (!std::isfinite(half_to_float(weight.scales[token * blocks + b]))) return;
    if (!keep_error(token, size, 0, 0)) return;
  }
  copy_ = packed;
}

// Roundings are parts of |w| |x|. False where nothing can be certified.
bool LogitScreen::keep_error(int64_t token, double error, double size, double roundings) {
  if (!(std::isfinite(error) && std::isfinite(size))) return false;
  const double bound = std::sqrt(error) + roundings * (std::sqrt(size) + std::sqrt(error));
  error_[static_cast<size_t>(token)] = static_cast<float>(bound * (1 + 0x1p-20));
  return true;
}

void LogitScreen::copy_floats(int64_t block) {
  const int64_t n = original_.n, k = original_.k;
  std::vector<int8_t> copy(static_cast<size_t>(n * k));
  std::vector<uint16_t> scales(static_cast<size_t>(n * (k / block)));
  std::vector<float> row(static_cast<size_t>(k));
  // Both sums, (k + 2) * 2^-24 each; the digits of x, 2^-16 of its largest element each, so at most
  // 2^-16 sqrt(k) |w| |x|.
  const double roundings = static_cast<double>(2 * k + 8) * 0x1p-24 + std::sqrt(static_cast<double>(k)) * 0x1p-15;
  for (int64_t token = 0; token < n; token++) {
    read_row(original_, token, row.data());
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
    if (!keep_error(token, error, size, roundings)) return;
  }
  copy_ = Packed({Dtype::int8, n, k, copy.data(), scales.data(), block});
}

// q = 16 high + rest: the copy has the high parts, and scales 16 times as large.
void LogitScreen::copy_int8() {
  const int64_t n = original_.n, k = original_.k, block = original_.block, blocks = k / block;
  const auto* weights = static_cast<const int8_t*>(original_.data);
  std::vector<uint8_t> copy(static_cast<size_t>(n * k / 2));
  std::vector<uint16_t> scales(static_cast<size_t>(n * blocks));
  // Both products have the same digits; in each, a rounding of a block and one of the total, of its step, of the bound.
  const double roundings = static_cast<double>(4 * blocks + 16) * 0x1p-24;
  for (int64_t token = 0; token < n; token++) {
    double error = 0, size = 0;
    for (int64_t b = 0; b < blocks; b++) {
      const double scale = half_to_float(original_.scales[token * blocks + b]);
      const uint16_t larger = float_to_half(static_cast<float>(16 * scale));
      if (half_to_float(larger) != static_cast<float>(16 * scale)) return;  // beyond float16
      scales[static_cast<size_t>(token * blocks + b)] = larger;
      int32_t off = 0, all = 0;  // squares of a block: at most 128 * 128^2
      for (int64_t i = b * block; i < (b + 1) * block; i++) {
        const int32_t q = weights[token * k + i], high = std::min((q + 8) >> 4, 7), rest = q - 16 * high;
        copy[static_cast<size_t>((token * k + i) / 2)] |= static_cast<uint8_t>((high & 15) << (i % 2 * 4));
        off += rest * rest;
        all += q * q;
      }
      error += scale * scale * off;
      size += scale * scale * all;
    }
    if (!keep_error(token, error, size, roundings)) return;
  }
  copy_ = Packed({Dtype::int4, n, k, copy.data(), scales.data(), block});
}

float LogitScreen::reach(const float* x, const uint8_t* digits) const {
  double squares = 0;
  for (int64_t i = 0; i < original_.k; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  if (rough_) {
    const int8_t* low = reinterpret_cast<const int8_t*>(digits + quantized_digits(original_.k, original_.block)) + original_.k;
    int64_t left_out = 0;
    for (int64_t i = 0; i < original_.k; i++) left_out += int64_t{low[i]} * low[i];
    float step;
    std::memcpy(&step, digits, sizeof step);
    // The roundings of copy_int8; x here is that of the digits, longer by 2^-16 of its largest element for each, at most.
    const double roundings = static_cast<double>(4 * (original_.k / original_.block) + 16) * 0x1p-24;
    const double size = std::sqrt(squares) * (1 + std::sqrt(static_cast<double>(original_.k)) * 0x1p-15);
    return static_cast<float>((step * std::sqrt(static_cast<double>(left_out)) + roundings * size) * (1 + 0x1p-20));
  }
  // The digits' norm: each is off by half a step, 2^-16 of the largest element, at most.
  const double longer = original_.dtype == Dtype::int8 ? std::sqrt(static_cast<double>(original_.k)) * 0x1p-15 : 0;
  return static_cast<float>(std::sqrt(squares) * (1 + longer + 0x1p-20));
}

void LogitScreen::upper(int64_t p, float reach, const float* values, float* upper) const {
  const float* error = error_.data() + p * kPanel;
  for (int64_t i = 0; i < kPanel; i++) upper[i] = values[i] + reach * error[i];
}

void LogitScreen::lower(int64_t p, float reach, float* values) const {
  const float* error = error_.data() + p * kPanel;
  for (int64_t i = 0; i < kPanel; i++) values[i] -= reach * error[i];
}

void LogitScreen::compute(const float* x, const uint8_t* digits, size_t count, const int64_t* tokens,
                          float* values) const {
  const auto rows = static_cast<int64_t>(count), k = original_.k;
  const auto all = [&](const auto* data) {  // of rows that lie anywhere, all are asked for at once
    std::vector<decltype(data)> row(count);
    for (size_t i = 0; i < count; i++) {
      row[i] = data + tokens[i] * k;
      for (size_t at = 0; at < static_cast<size_t>(k) * sizeof *data; at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row[i]) + at);
    }
    return row;
  };
  switch (original_.dtype) {
    case Dtype::float32: isa().in_order_f32(rows, k, x, all(static_cast<const float*>(original_.data)).data(), values); break;
    case Dtype::float16: isa().in_order_f16(rows, k, x, all(static_cast<const uint16_t*>(original_.data)).data(), values); break;
    default: {
      const uint16_t* scales[kAtOnce];
      for (size_t i = 0; i < count; i++) scales[i] = original_.scales + tokens[i] * (k / original_.block);
      if (original_.dtype == Dtype::int4) {
        int8_t* wide = reinterpret_cast<int8_t*>(thread_bytes(count * static_cast<size_t>(k)));
        const int8_t* row[kAtOnce];
        for (size_t i = 0; i < count; i++) {
          int8_t* to = wide + i * static_cast<size_t>(k);
          const uint8_t* pairs = static_cast<const uint8_t*>(original_.data) + tokens[i] * k / 2;
          for (int64_t j = 0; j < k / 2; j++) {
            to[2 * j] = static_cast<int8_t>(((pairs[j] & 15) ^ 8) - 8);
            to[2 * j + 1] = static_cast<int8_t>(((pairs[j] >> 4) ^ 8) - 8);
          }
          row[i] = to;
        }
        isa().in_order_i8(rows, k, original_.block, digits, row, scales, values);
        break;
      }
      isa().in_order_i8(rows, k, original_.block, digits, all(static_cast<const int8_t*>(original_.data)).data(), scales, values);
    }
  }
}

}  // namespace doge
