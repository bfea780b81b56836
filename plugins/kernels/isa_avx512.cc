// AVX-512 with VNNI: a 16-bit digit is two bytes, high and low, each multiplied with weights by vpdpbusd.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "isa.h"

namespace doge {
namespace {

constexpr int W = 16, V = 4, R = 6;
typedef float vf __attribute__((vector_size(W * 4)));
inline vf load_half(const uint16_t* p) {
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline uint32_t not_below_bits(vf x, vf floor) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(floor), _CMP_NLT_UQ);
}
#include "isa_float.inc"

inline __m512i digits_of(const float* x, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
}

// The digits of `n` floats, a multiple of 32; returns their sum.
inline int32_t quantize_block(const float* x, int64_t n, __m512 inverse, int8_t* high, int8_t* low) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // packs works within 128 bits
  const __m512i most = _mm512_set1_epi16(32512), least = _mm512_set1_epi16(-32512);
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 32) {
    __m512i q = _mm512_packs_epi32(digits_of(x + i, inverse), digits_of(x + i + 16, inverse));
    q = _mm512_permutexvar_epi64(order, _mm512_min_epi16(_mm512_max_epi16(q, least), most));
    total = _mm512_add_epi32(total, _mm512_madd_epi16(q, _mm512_set1_epi16(1)));
    const __m512i h = _mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8);
    const __m512i l = _mm512_sub_epi16(q, _mm512_slli_epi16(h, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), _mm512_cvtepi16_epi8(h));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), _mm512_cvtepi16_epi8(l));
  }
  return _mm512_reduce_add_epi32(total);
}

// The digits are high bytes int8 [k], then low bytes int8 [k]: q = 256 * high + low.
void quantize_row(const float* x, int64_t k, int64_t block, uint8_t* row) {
  __m512 most = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 16) {
    const __mmask16 lanes = k - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (k - i)) - 1);
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, x + i)));
  }
  const float largest = _mm512_reduce_max_ps(most);
  const float step = largest > 0 ? largest / 32512.0f : 1.0f;
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? 32512.0f / largest : 0.0f);
  std::memcpy(row, &step, 4);
  int8_t* high = reinterpret_cast<int8_t*>(row + quantized_digits(k, block));
  int8_t* low = high + k;
  const __m512i most_digit = _mm512_set1_epi32(32512), least = _mm512_set1_epi32(-32512);
  for (int64_t b = 0; b < k / block; b++) {
    if (block % 32 == 0) {
      const int32_t digit_sum = quantize_block(x + b * block, block, inverse, high + b * block, low + b * block);
      std::memcpy(row + 4 + 4 * b, &digit_sum, 4);
      continue;
    }
    __m512i total = _mm512_setzero_si512();
    const int64_t end = (b + 1) * block;
    for (int64_t i = b * block; i < end; i += 16) {
      const __mmask16 lanes = end - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (end - i)) - 1);
      __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse));
      q = _mm512_min_epi32(_mm512_max_epi32(q, least), most_digit);
      total = _mm512_add_epi32(total, q);
      const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      const __m512i l = _mm512_sub_epi32(q, _mm512_slli_epi32(h, 8));
      _mm_mask_storeu_epi8(high + i, lanes, _mm512_cvtepi32_epi8(h));
      _mm_mask_storeu_epi8(low + i, lanes, _mm512_cvtepi32_epi8(l));
    }
    const int32_t digit_sum = _mm512_reduce_add_epi32(total);
    std::memcpy(row + 4 + 4 * b, &digit_sum, 4);
  }
}

// Bytes; 1, 2, 8 and 16 KB were slower on Doge-20M and 60M with two threads.
constexpr int64_t kAhead = 4096;

inline __m512i four(const int8_t* digits) {
  int32_t bytes;
  std::memcpy(&bytes, digits, 4);
  return _mm512_set1_epi32(bytes);
}

template <int ROWS, bool NIBBLES>
inline void tile_digits(int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                        const uint16_t* scales, float* y, int64_t ldy) {
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const size_t at = quantized_digits(k, block);
  const __m512i mask = _mm512_set1_epi8(15);
  const int8_t* high[ROWS];
  const int8_t* low[ROWS];
  for (int r = 0; r < ROWS; r++) {
    high[r] = reinterpret_cast<const int8_t*>(x + r * stride + at);
    low[r] = high[r] + k;
  }
  __m512 total[ROWS][4];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 4; v++) total[r][v] = _mm512_setzero_ps();
  for (int64_t b = 0; b < k / block; b++) {
    __m512i acc_high[ROWS][4], acc_low[ROWS][4];
    for (int r = 0; r < ROWS; r++) {
      int32_t digit_sum;
      std::memcpy(&digit_sum, x + r * stride + 4 + 4 * b, 4);
      for (int v = 0; v < 4; v++) {
        acc_high[r][v] = _mm512_setzero_si512();
        acc_low[r][v] = _mm512_set1_epi32((NIBBLES ? -8 : -128) * digit_sum);
      }
    }
    for (int64_t i = b * block; i < (b + 1) * block; i += STEP) {
      __m512i w[4];
      const uint8_t* weights = panel + i / STEP * kPanel * 4;
      if (ROWS == 1)  // one row waits for memory, and the processor's own prefetcher stops at every page
        for (int v = 0; v < 4; v++) __builtin_prefetch(weights + kAhead + v * 64);
      for (int v = 0; v < 4; v++) w[v] = _mm512_loadu_si512(weights + v * 64);
      if (NIBBLES) {
        __m512i first[4];
        for (int v = 0; v < 4; v++) {
          first[v] = _mm512_and_si512(w[v], mask);
          w[v] = _mm512_and_si512(_mm512_srli_epi16(w[v], 4), mask);
        }
        for (int r = 0; r < ROWS; r++) {
          const __m512i h = four(high[r] + i), l = four(low[r] + i);
          for (int v = 0; v < 4; v++) {
            acc_high[r][v] = _mm512_dpbusd_epi32(acc_high[r][v], first[v], h);
            acc_low[r][v] = _mm512_dpbusd_epi32(acc_low[r][v], first[v], l);
          }
        }
      }
      for (int r = 0; r < ROWS; r++) {
        const int64_t j = NIBBLES ? i + 4 : i;
        const __m512i h = four(high[r] + j), l = four(low[r] + j);
        for (int v = 0; v < 4; v++) {
          acc_high[r][v] = _mm512_dpbusd_epi32(acc_high[r][v], w[v], h);
          acc_low[r][v] = _mm512_dpbusd_epi32(acc_low[r][v], w[v], l);
        }
      }
    }
    for (int v = 0; v < 4; v++) {
      const __m512 factor = reinterpret_cast<__m512>(load_half(scales + b * kPanel + v * 16));
      for (int r = 0; r < ROWS; r++) {
        const __m512i q = _mm512_add_epi32(_mm512_slli_epi32(acc_high[r][v], 8), acc_low[r][v]);
        total[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), factor, total[r][v]);
      }
    }
  }
  for (int r = 0; r < ROWS; r++) {
    float step;
    std::memcpy(&step, x + r * stride, 4);
    for (int v = 0; v < 4; v++)
      _mm512_storeu_ps(y + r * ldy + v * 16, _mm512_mul_ps(total[r][v], _mm512_set1_ps(step)));
  }
}

template <bool NIBBLES>
void gemm_digits(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                 const uint16_t* scales, float* y, int64_t ldy) {
  for (; rows >= 3; rows -= 3, x += 3 * stride, y += 3 * ldy)
    tile_digits<3, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
  if (rows == 2) tile_digits<2, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
  if (rows == 1) tile_digits<1, NIBBLES>(k, block, x, stride, panel, scales, y, ldy);
}

void gemm_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<false>(rows, k, block, x, stride, panel, scales, y, ldy);
}

void gemm_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<true>(rows, k, block, x, stride, panel, scales, y, ldy);
}

void in_order_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, const int8_t* const* row,
                 const uint16_t* const* scales, float* y) {
  float step;
  std::memcpy(&step, x, 4);
  const int8_t* high = reinterpret_cast<const int8_t*>(x + quantized_digits(k, block));
  const int8_t* low = high + k;
  const __m512i offset = _mm512_set1_epi8(-128);
  for (int64_t r = 0; r < rows; r++) {
    float total = 0;
    for (int64_t b = 0; b < k / block; b++) {
      __m512i acc_high = _mm512_setzero_si512(), acc_low = _mm512_setzero_si512();
      const int64_t end = (b + 1) * block;
      for (int64_t i = b * block; i < end; i += 64) {
        const __mmask64 lanes = end - i >= 64 ? ~uint64_t{0} : (uint64_t{1} << (end - i)) - 1;
        const __m512i w = _mm512_xor_si512(_mm512_maskz_loadu_epi8(lanes, row[r] + i), offset);
        acc_high = _mm512_dpbusd_epi32(acc_high, w, _mm512_maskz_loadu_epi8(lanes, high + i));
        acc_low = _mm512_dpbusd_epi32(acc_low, w, _mm512_maskz_loadu_epi8(lanes, low + i));
      }
      int32_t digit_sum;
      std::memcpy(&digit_sum, x + 4 + 4 * b, 4);
      const int32_t q = _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(acc_high, 8), acc_low)) - 128 * digit_sum;
      total = std::fma(static_cast<float>(q), half_to_float(scales[r][b]), total);
    }
    y[r] = total * step;
  }
}

#include "isa_table.inc"
}  // namespace

const Isa isa_avx512 = DOGE_TABLE("avx512");
}  // namespace doge
#endif
