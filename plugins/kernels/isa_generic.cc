// The loops for any processor: four lanes, which every 64-bit one has, and whole numbers as the compiler likes.
#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

constexpr int W = 4, V = 2, R = 4;
inline float half_to_float(uint16_t h);
typedef float vf __attribute__((vector_size(W * 4)));
inline vf load_half(const uint16_t* p) {
  return vf{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
inline uint32_t not_below_bits(vf x, vf floor) {
  uint32_t bits = 0;
  for (int i = 0; i < W; i++) bits |= static_cast<uint32_t>(!(x[i] < floor[i])) << i;
  return bits;
}
#include "isa_float.inc"
inline float multiply_add(float a, float b, float c) { return a * b + c; }
#include "isa_digits16.inc"

// `weight(i, o)` is q + offset of input i and output o of the panel.
template <int32_t OFFSET, class Weight>
void gemm_digits(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint16_t* scales,
                 float* y, int64_t ldy, Weight weight) {
  for (int64_t r = 0; r < rows; r++, x += stride, y += ldy) {
    float step;
    std::memcpy(&step, x, 4);
    const int16_t* digits = reinterpret_cast<const int16_t*>(x + quantized_digits(k, block));
    float total[kPanel] = {};
    for (int64_t b = 0; b < k / block; b++) {
      int32_t digit_sum;
      std::memcpy(&digit_sum, x + 4 + 4 * b, 4);
      int32_t acc[kPanel];
      for (int64_t o = 0; o < kPanel; o++) acc[o] = -OFFSET * digit_sum;
      for (int64_t i = b * block; i < (b + 1) * block; i++)
        for (int64_t o = 0; o < kPanel; o++) acc[o] += weight(i, o) * digits[i];
      for (int64_t o = 0; o < kPanel; o++)
        total[o] += static_cast<float>(acc[o]) * half_to_float(scales[b * kPanel + o]);
    }
    for (int64_t o = 0; o < kPanel; o++) y[o] = total[o] * step;
  }
}

void gemm_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<128>(rows, k, block, x, stride, scales, y, ldy, [panel](int64_t i, int64_t o) {
    return static_cast<int32_t>(panel[(i / 4 * kPanel + o) * 4 + i % 4]);
  });
}

void gemm_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<8>(rows, k, block, x, stride, scales, y, ldy, [panel](int64_t i, int64_t o) {
    return static_cast<int32_t>(panel[(i / 8 * kPanel + o) * 4 + i % 4] >> (i % 8 / 4 * 4) & 15);
  });
}

#include "isa_table.inc"
}  // namespace

const Isa isa_generic = DOGE_TABLE("generic");
}  // namespace doge
