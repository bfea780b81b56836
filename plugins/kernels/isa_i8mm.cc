// ARM with products of small matrices of bytes (usmmla, which ARMv8.6 has). The high and the low bytes of a
// row's digits are the two columns of one factor: one row fills the instruction as two would.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

#include "isa_neon.inc"

constexpr int32_t kOffset = 128;  // usdot and usmmla take unsigned weights
template <int LANE>
inline int32x4_t dot(int32x4_t sum, uint8x16_t w, int8x16_t x) {
  return vusdotq_laneq_s32(sum, w, x, LANE);
}
#include "isa_dots.inc"

inline uint8x16_t first_pair(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
inline uint8x16_t second_pair(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

// As add_dots. sums[r][p]: of output 2p the high bytes' product and the low ones', then of output 2p + 1.
template <int ROWS, int COLUMNS, bool NIBBLES>
inline void add_few(int64_t block, const Part* part, const uint8_t* weights, const uint16_t* scales,
                    float (*total)[kPanel]) {
  int32x4_t sums[ROWS][2 * COLUMNS];
  for (int r = 0; r < ROWS; r++) {
    const int32x2_t begin = vset_lane_s32(part[r].begin, vdup_n_s32(0), 1);
    for (int p = 0; p < 2 * COLUMNS; p++) sums[r][p] = vcombine_s32(begin, begin);
  }
  int64_t i = 0;
  for (; i + 8 <= block; i += 8, weights += kPanel * (NIBBLES ? 4 : 8)) {
    int8x16_t x[ROWS];
    for (int r = 0; r < ROWS; r++) x[r] = vreinterpretq_s8_u8(vld1q_u8(part[r].digits + 2 * i));
    for (int c = 0; c < COLUMNS; c++) {
      uint8x16_t w[2];
      load_weights<NIBBLES>(weights + 16 * c, &w[0], &w[1]);
      const uint8x16_t pair[2] = {first_pair(w[0], w[1]), second_pair(w[0], w[1])};
      for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < 2; p++) sums[r][2 * c + p] = vusmmlaq_s32(sums[r][2 * c + p], pair[p], x[r]);
    }
  }
  if (!NIBBLES && i < block) {  // four inputs are left: four zeros follow them in each factor
    const uint8x16_t zero = vdupq_n_u8(0);
    for (int c = 0; c < COLUMNS; c++) {
      const uint8x16_t w = vld1q_u8(weights + 16 * c), pair[2] = {first_pair(w, zero), second_pair(w, zero)};
      for (int r = 0; r < ROWS; r++) {
        const uint8x16_t few = vcombine_u8(vld1_u8(part[r].digits + 2 * i), vdup_n_u8(0));
        const int8x16_t x = vreinterpretq_s8_u8(first_pair(few, zero));
        for (int p = 0; p < 2; p++) sums[r][2 * c + p] = vusmmlaq_s32(sums[r][2 * c + p], pair[p], x);
      }
    }
  }
  for (int c = 0; c < COLUMNS; c++) {
    const float32x4_t factor = load_scales(scales + 4 * c);
    for (int r = 0; r < ROWS; r++) {
      const int32x4_t a = sums[r][2 * c], b = sums[r][2 * c + 1];
      add_block(vuzp1q_s32(a, b), vuzp2q_s32(a, b), factor, total[r] + 4 * c);
    }
  }
}

#include "isa_table.inc"
}  // namespace

const Isa isa_i8mm = DOGE_TABLE("i8mm");
}  // namespace doge
#endif
