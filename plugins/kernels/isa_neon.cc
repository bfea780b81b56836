// ARM as every 64-bit one is: 16-bit digits, multiplied four at a time (smlal).
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

#include "isa_neon.inc"

// The digits are int16 [k].
void quantize_row(const float* x, int64_t k, int64_t block, uint8_t* row) {
  quantize_with(x, k, block, row, [block](const float* from, float inverse, uint8_t* digits) {
    int32x4_t sums = vdupq_n_s32(0);
    for (int64_t i = 0; i < block; i += 4) {
      const int32x4_t q = four_digits(from + i, inverse);
      sums = vaddq_s32(sums, q);
      vst1_s16(reinterpret_cast<int16_t*>(digits) + i, vmovn_s32(q));
    }
    return sums;
  });
}

// Four inputs of four outputs: sums[r][o] += the four products of output o, in a lane each.
template <int ROWS>
inline void multiply(uint8x16_t w, const int16x8_t* x, int32x4_t (*sums)[4]) {
  const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
  const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(w));
  for (int r = 0; r < ROWS; r++) {
    sums[r][0] = vmlal_s16(sums[r][0], vget_low_s16(low), vget_low_s16(x[r]));
    sums[r][1] = vmlal_high_s16(sums[r][1], low, x[r]);
    sums[r][2] = vmlal_s16(sums[r][2], vget_low_s16(high), vget_low_s16(x[r]));
    sums[r][3] = vmlal_high_s16(sums[r][3], high, x[r]);
  }
}

// Four digits, twice.
inline int16x8_t twice(const int16_t* digits) {
  int64_t four;
  std::memcpy(&four, digits, sizeof four);
  return vreinterpretq_s16_s64(vdupq_n_s64(four));
}

template <int ROWS, int COLUMNS, bool NIBBLES>  // COLUMNS of four outputs at once
inline void tile_digits(int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                        const uint16_t* scales, float* y, int64_t ldy) {
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const size_t at = quantized_digits(k, block);
  float total[ROWS][kPanel] = {};
  for (int64_t b = 0; b < k / block; b++)
    for (int64_t o = 0; o < kPanel; o += 4 * COLUMNS) {
      int32x4_t sums[COLUMNS][ROWS][4];
      for (int c = 0; c < COLUMNS; c++)
        for (int r = 0; r < ROWS; r++)
          for (int l = 0; l < 4; l++) sums[c][r][l] = vdupq_n_s32(0);
      for (int64_t i = b * block; i < (b + 1) * block; i += STEP) {
        int16x8_t digits[ROWS], more[ROWS];
        for (int r = 0; r < ROWS; r++) {
          const int16_t* from = reinterpret_cast<const int16_t*>(x + r * stride + at) + i;
          digits[r] = twice(from);
          if (NIBBLES) more[r] = twice(from + 4);
        }
        for (int c = 0; c < COLUMNS; c++) {
          const uint8x16_t w = vld1q_u8(panel + (i / STEP * kPanel + o) * 4 + 16 * c);
          multiply<ROWS>(NIBBLES ? vandq_u8(w, vdupq_n_u8(15)) : w, digits, sums[c]);
          if (NIBBLES) multiply<ROWS>(vshrq_n_u8(w, 4), more, sums[c]);
        }
      }
      for (int c = 0; c < COLUMNS; c++) {
        const float32x4_t factor = load_scales(scales + b * kPanel + o + 4 * c);
        for (int r = 0; r < ROWS; r++) {
          const int32x4_t* of = sums[c][r];
          const int32x4_t products = vpaddq_s32(vpaddq_s32(of[0], of[1]), vpaddq_s32(of[2], of[3]));
          const int32_t correction = (NIBBLES ? 8 : 128) * digit_sum_of(x + r * stride, b);
          const float32x4_t q = vcvtq_f32_s32(vsubq_s32(products, vdupq_n_s32(correction)));
          float* to = total[r] + o + 4 * c;
          vst1q_f32(to, vfmaq_f32(vld1q_f32(to), q, factor));
        }
      }
    }
  for (int r = 0; r < ROWS; r++) finish(total[r], step_of(x + r * stride), y + r * ldy);
}

template <bool NIBBLES>
void gemm_digits(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride,
                 const uint8_t* panel, const uint16_t* scales, float* y, int64_t ldy) {
  for (; !NIBBLES && rows >= 3; rows -= 3, x += 3 * stride, y += 3 * ldy)
    tile_digits<3, 2, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
  for (; rows >= 2; rows -= 2, x += 2 * stride, y += 2 * ldy)
    tile_digits<2, 2, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
  if (rows == 1) tile_digits<1, 4, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
}

#include "isa_gemm.inc"

void in_order_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, const int8_t* const* row,
                 const uint16_t* const* scales, float* y) {
  const float step = step_of(x);
  const int16_t* digits = reinterpret_cast<const int16_t*>(x + quantized_digits(k, block));
  for (int64_t r = 0; r < rows; r++) {
    float total = 0;
    for (int64_t b = 0; b < k / block; b++) {
      int32x4_t sums = vdupq_n_s32(0);
      int64_t i = b * block;
      for (; i + 8 <= (b + 1) * block; i += 8) {
        const int16x8_t w = vmovl_s8(vld1_s8(row[r] + i)), x8 = vld1q_s16(digits + i);
        sums = vmlal_high_s16(vmlal_s16(sums, vget_low_s16(w), vget_low_s16(x8)), w, x8);
      }
      int32_t q = vaddvq_s32(sums);
      for (; i < (b + 1) * block; i++) q += digits[i] * row[r][i];
      total = std::fma(static_cast<float>(q), half_to_float(scales[r][b]), total);
    }
    y[r] = total * step;
  }
}

#include "isa_table.inc"
}  // namespace

const Isa isa_neon = DOGE_TABLE("neon");
}  // namespace doge
#endif
