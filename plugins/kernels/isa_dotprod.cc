// ARM with dot products (sdot, which ARMv8.4 has and most of ARMv8.2): signed bytes by signed bytes.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

#include "isa_neon.inc"

constexpr int32_t kOffset = 0;
template <int LANE>
inline int32x4_t dot(int32x4_t sum, uint8x16_t w, int8x16_t x) {
  return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(w), x, LANE);
}
#include "isa_dots.inc"

template <int ROWS, int COLUMNS, bool NIBBLES>
inline void add_few(int64_t block, const Part* part, const uint8_t* weights, const uint16_t* scales,
                    float (*total)[kPanel]) {
  add_dots<ROWS, COLUMNS, NIBBLES>(block, part, weights, scales, total);
}

#include "isa_table.inc"
}  // namespace

constexpr Isa with_signed_weights(Isa isa) {  // sdot takes no others: they are flipped when they are packed
  isa.flip = 0;
  return isa;
}
const Isa isa_dotprod = with_signed_weights(DOGE_TABLE("dotprod"));
}  // namespace doge
#endif
