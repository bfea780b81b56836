// Sixteen-bit floats, converted one by one: at the edges of a kernel, never in its inner loop.
#pragma once

#include <cstdint>
#include <cstring>

#include "doge_kernels.h"

namespace doge {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // The exponents differ by 112; the product also normalises what was subnormal.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

// To nearest, ties to even, as ONNX's Cast does.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 puts the last bit where the sum rounds
    const uint32_t rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float bfloat16_to_float(uint16_t b) { return bits_to_float(static_cast<uint32_t>(b) << 16); }
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline size_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// n elements at element `at` of a float32, float16 or bfloat16 tensor.
inline void read_floats(Dtype dtype, const void* from, int64_t at, int64_t n, float* to) {
  if (dtype == Dtype::float32) {
    std::memcpy(to, static_cast<const float*>(from) + at, static_cast<size_t>(n) * 4);
    return;
  }
  const uint16_t* source = static_cast<const uint16_t*>(from) + at;
  for (int64_t i = 0; i < n; i++)
    to[i] = dtype == Dtype::float16 ? half_to_float(source[i]) : bfloat16_to_float(source[i]);
}
inline void write_floats(Dtype dtype, const float* from, int64_t n, void* to, int64_t at) {
  if (dtype == Dtype::float32) {
    std::memcpy(static_cast<float*>(to) + at, from, static_cast<size_t>(n) * 4);
    return;
  }
  uint16_t* target = static_cast<uint16_t*>(to) + at;
  for (int64_t i = 0; i < n; i++)
    target[i] = dtype == Dtype::float16 ? float_to_half(from[i]) : float_to_bfloat16(from[i]);
}

}  // namespace doge
