// AVX2 with FMA: 16-bit digits, multiplied in pairs (vpmaddwd), which no weight can make overflow.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

constexpr int W = 8, V = 2, R = 6;
typedef float vf __attribute__((vector_size(W * 4)));
inline vf load_half(const uint16_t* p) {
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline uint32_t not_below_bits(vf x, vf floor) {
  const __m256 kept = _mm256_cmp_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(floor), _CMP_NLT_UQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(kept));
}
#define DOGE_WIDE_PRODUCT
typedef uint64_t vq __attribute__((vector_size(W * 4)));
inline vq wide_product(vq a, uint32_t b) {
  return reinterpret_cast<vq>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
}
#include "isa_float.inc"
// As the vectors of gemm_digits do it, whatever the compiler contracts.
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
#include "isa_digits16.inc"

// 32 outputs of one block: acc[c] holds outputs 4c .. 4c + 3 as two partial sums each.
struct Half {
  __m256i acc[8];
};

inline void multiply(Half& half, const uint8_t* weights, __m128i mask, int shift, __m256i digits) {
  for (int c = 0; c < 8; c++) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16 * c));
    if (shift) bytes = _mm_srli_epi16(bytes, 4);
    bytes = _mm_and_si128(bytes, mask);
    half.acc[c] = _mm256_add_epi32(half.acc[c], _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), digits));
  }
}

inline __m256i four_digits(const int16_t* digits) {
  int64_t four;
  std::memcpy(&four, digits, 8);
  return _mm256_set1_epi64x(four);
}

template <bool NIBBLES>
void one_row(int64_t k, int64_t block, const uint8_t* x, const uint8_t* panel, const uint16_t* scales, float* y) {
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const __m128i mask = _mm_set1_epi8(NIBBLES ? 15 : -1);
  float step;
  std::memcpy(&step, x, 4);
  const int16_t* digits = reinterpret_cast<const int16_t*>(x + quantized_digits(k, block));
  for (int64_t first = 0; first < kPanel; first += 32) {
    __m256 total[4] = {};
    for (int64_t b = 0; b < k / block; b++) {
      Half half = {};
      for (int64_t i = b * block; i < (b + 1) * block; i += STEP) {
        const uint8_t* weights = panel + (i / STEP * kPanel + first) * 4;
        multiply(half, weights, mask, 0, four_digits(digits + i));
        if (NIBBLES) multiply(half, weights, mask, 4, four_digits(digits + i + 4));
      }
      int32_t digit_sum;
      std::memcpy(&digit_sum, x + 4 + 4 * b, 4);
      const __m256i correction = _mm256_set1_epi32((NIBBLES ? 8 : 128) * digit_sum);
      for (int c = 0; c < 4; c++) {
        __m256i outputs = _mm256_hadd_epi32(half.acc[2 * c], half.acc[2 * c + 1]);
        outputs = _mm256_sub_epi32(_mm256_permute4x64_epi64(outputs, 0xD8), correction);
        const __m256 factor = reinterpret_cast<__m256>(load_half(scales + b * kPanel + first + 8 * c));
        total[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(outputs), factor, total[c]);
      }
    }
    for (int c = 0; c < 4; c++)
      _mm256_storeu_ps(y + first + 8 * c, _mm256_mul_ps(total[c], _mm256_set1_ps(step)));
  }
}

// Before GCC knows that sums are registers, the loops over them must be gone.
#define DOGE_UNROLLED _Pragma("GCC unroll 4")

// Outputs [first, first + 16) of one block of ROWS rows: weights are widened once for all of them. The totals lie in y, and
// are complete after the `last` block.
template <int ROWS, bool NIBBLES>
__attribute__((always_inline)) inline void block_of_rows(int64_t k, int64_t block, int64_t b, bool last, int64_t first,
                                                         const uint8_t* x, size_t stride, const uint8_t* panel,
                                                         const uint16_t* scales, float* y, int64_t ldy) {
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const __m128i mask = _mm_set1_epi8(15);
  const uint8_t* digits = x + quantized_digits(k, block) + 2 * b * block;
  __m256i acc[ROWS][4] = {};
  const uint8_t* weights = panel + (b * block / STEP * kPanel + first) * 4;
  for (int64_t i = 0; i < block; i += STEP, weights += kPanel * 4)
    DOGE_UNROLLED for (int c = 0; c < 4; c++) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16 * c));
      const __m256i w = _mm256_cvtepu8_epi16(NIBBLES ? _mm_and_si128(bytes, mask) : bytes);
      DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
        const auto* own = reinterpret_cast<const int16_t*>(digits + r * stride) + i;
        acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(w, four_digits(own)));
      }
      if (!NIBBLES) continue;
      const __m256i upper = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
      DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
        const auto* own = reinterpret_cast<const int16_t*>(digits + r * stride) + i + 4;
        acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(upper, four_digits(own)));
      }
    }
  DOGE_UNROLLED for (int c = 0; c < 2; c++) {
    const __m256 factor = reinterpret_cast<__m256>(load_half(scales + b * kPanel + first + 8 * c));
    DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
      int32_t digit_sum;
      std::memcpy(&digit_sum, x + r * stride + 4 + 4 * b, 4);
      __m256i outputs = _mm256_hadd_epi32(acc[r][2 * c], acc[r][2 * c + 1]);
      outputs = _mm256_sub_epi32(_mm256_permute4x64_epi64(outputs, 0xD8), _mm256_set1_epi32((NIBBLES ? 8 : 128) * digit_sum));
      float* to = y + r * ldy + first + 8 * c;
      const __m256 before = b == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(to);
      __m256 total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(outputs), factor, before);
      if (last) {
        float step;
        std::memcpy(&step, x + r * stride, 4);
        total = _mm256_mul_ps(total, _mm256_set1_ps(step));
      }
      _mm256_storeu_ps(to, total);
    }
  }
}

template <int ROWS, bool NIBBLES>
void few_rows(int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel, const uint16_t* scales,
              float* y, int64_t ldy) {
  for (int64_t b = 0; b < k / block; b++)
    for (int64_t first = 0; first < kPanel; first += 16)
      block_of_rows<ROWS, NIBBLES>(k, block, b, (b + 1) * block == k, first, x, stride, panel, scales, y, ldy);
}

template <bool NIBBLES>
void gemm_digits(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                 const uint16_t* scales, float* y, int64_t ldy) {
  for (int64_t tiles = (rows + 2) / 3; tiles > 0; tiles--) {
    const int64_t now = (rows + tiles - 1) / tiles;
    if (now == 1)
      one_row<NIBBLES>(k, block, x, panel, scales, y);
    else
      (now == 2 ? few_rows<2, NIBBLES> : few_rows<3, NIBBLES>)(k, block, x, stride, panel, scales, y, ldy);
    rows -= now;
    x += now * static_cast<int64_t>(stride);
    y += now * ldy;
  }
}

#include "isa_gemm.inc"

#include "isa_table.inc"
}  // namespace

const Isa isa_avx2 = DOGE_TABLE("avx2");
}  // namespace doge
#endif
