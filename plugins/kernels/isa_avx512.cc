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
#define DOGE_WIDE_PRODUCT
typedef uint64_t vq __attribute__((vector_size(W * 4)));
inline vq wide_product(vq a, uint32_t b) {
  return reinterpret_cast<vq>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
}
#include "isa_float.inc"

inline __m512i digits_of(const float* x, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
}

// The digits of `n` floats, a multiple of 32, their sum and that of the high bytes.
inline void quantize_block(const float* x, int64_t n, __m512 inverse, int8_t* high, int8_t* low, int32_t* sums,
                           int64_t high_sums) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // packs works within 128 bits
  const __m512i most = _mm512_set1_epi16(32512), least = _mm512_set1_epi16(-32512);
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i total = _mm512_setzero_si512(), total_high = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 32) {
    __m512i q = _mm512_packs_epi32(digits_of(x + i, inverse), digits_of(x + i + 16, inverse));
    q = _mm512_permutexvar_epi64(order, _mm512_min_epi16(_mm512_max_epi16(q, least), most));
    total = _mm512_add_epi32(total, _mm512_madd_epi16(q, ones));
    const __m512i h = _mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8);
    total_high = _mm512_add_epi32(total_high, _mm512_madd_epi16(h, ones));
    const __m512i l = _mm512_sub_epi16(q, _mm512_slli_epi16(h, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), _mm512_cvtepi16_epi8(h));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), _mm512_cvtepi16_epi8(l));
  }
  sums[0] = _mm512_reduce_add_epi32(total);
  sums[high_sums] = _mm512_reduce_add_epi32(total_high);
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
  int32_t* sums = reinterpret_cast<int32_t*>(row + 4);
  const int64_t blocks = k / block;
  for (int64_t b = 0; b < blocks; b++) {
    if (block % 32 == 0) {
      quantize_block(x + b * block, block, inverse, high + b * block, low + b * block, sums + b, blocks);
      continue;
    }
    __m512i total = _mm512_setzero_si512(), total_high = _mm512_setzero_si512();
    const int64_t end = (b + 1) * block;
    for (int64_t i = b * block; i < end; i += 16) {
      const __mmask16 lanes = end - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (end - i)) - 1);
      __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse));
      q = _mm512_min_epi32(_mm512_max_epi32(q, least), most_digit);
      total = _mm512_add_epi32(total, q);
      const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      const __m512i l = _mm512_sub_epi32(q, _mm512_slli_epi32(h, 8));
      total_high = _mm512_add_epi32(total_high, h);
      _mm_mask_storeu_epi8(high + i, lanes, _mm512_cvtepi32_epi8(h));
      _mm_mask_storeu_epi8(low + i, lanes, _mm512_cvtepi32_epi8(l));
    }
    sums[b] = _mm512_reduce_add_epi32(total);
    sums[blocks + b] = _mm512_reduce_add_epi32(total_high);
  }
}

// How far ahead weights are fetched, in bytes: the processor's own prefetcher stops at every page. One row is as fast as
// memory is; several take longer for a line, and fetch it no nearer than the second cache: more is under way so.
constexpr int64_t kAhead = 4096, kAheadOfRows = 8192;

inline __m512i four(const int8_t* digits) {
  int32_t bytes;
  std::memcpy(&bytes, digits, 4);
  return _mm512_set1_epi32(bytes);
}

// to += w times four digits, spread out by the instruction itself. In assembly: of the intrinsic GCC 12 copies the sums
// of a tile to and fro, and writes some to memory at each step, which takes a third of its speed.
inline __m512i add_products(__m512i sum, __m512i w, const int8_t* digits) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const int32_t*>(digits)));
  return sum;
}

// Before GCC knows that sums are registers, the loops over them must be gone.
#define DOGE_UNROLLED _Pragma("GCC unroll 8")

// Outputs from 16 * `column` on of one block of ROWS rows: 32 of them, or, of the high bytes ALONE, 64. Their totals lie in
// y, and are complete after the `last` block.
template <int ROWS, bool NIBBLES, bool ALONE>
__attribute__((always_inline)) inline void block_of_rows(int64_t k, int64_t block, int64_t b, bool last, int column,
                                                         int64_t ahead, const uint8_t* x, size_t stride,
                                                         const uint8_t* panel, const uint16_t* scales, float* y,
                                                         int64_t ldy) {
  constexpr int COLUMNS = ALONE ? 4 : 2;
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const __m512i mask = _mm512_set1_epi8(15);
  const auto offset = [&](int r) {
    int32_t digit_sum;
    std::memcpy(&digit_sum, x + r * stride + 4 + 4 * (ALONE ? k / block + b : b), 4);
    return _mm512_set1_epi32((NIBBLES ? -8 : -128) * digit_sum);
  };
  __m512i high[ROWS][COLUMNS], low[ROWS][COLUMNS];
  DOGE_UNROLLED for (int r = 0; r < ROWS; r++)
    DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) {
      high[r][v] = _mm512_setzero_si512();
      low[r][v] = ALONE ? _mm512_setzero_si512() : offset(r);
    }
  const int8_t* digits = reinterpret_cast<const int8_t*>(x + quantized_digits(k, block)) + b * block;
  const uint8_t* weights = panel + (b * block / STEP * kPanel + column * 16) * 4;
  for (int64_t i = 0; i < block; i += STEP, weights += kPanel * 4) {
    __m512i w[COLUMNS];
    DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) __builtin_prefetch(weights + ahead + v * 64, 0, 2);
    DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) w[v] = _mm512_loadu_si512(weights + v * 64);
    if (NIBBLES) {
      __m512i first[COLUMNS];
      DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) {
        first[v] = _mm512_and_si512(w[v], mask);
        w[v] = _mm512_and_si512(_mm512_srli_epi16(w[v], 4), mask);
      }
      DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
        const int8_t* own = digits + r * stride + i;
        DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) high[r][v] = add_products(high[r][v], first[v], own);
        DOGE_UNROLLED for (int v = 0; v < COLUMNS && !ALONE; v++) low[r][v] = add_products(low[r][v], first[v], own + k);
      }
    }
    DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
      const int8_t* own = digits + r * stride + i + (NIBBLES ? 4 : 0);
      DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) high[r][v] = add_products(high[r][v], w[v], own);
      DOGE_UNROLLED for (int v = 0; v < COLUMNS && !ALONE; v++) low[r][v] = add_products(low[r][v], w[v], own + k);
    }
  }
  DOGE_UNROLLED for (int v = 0; v < COLUMNS; v++) {
    const __m512 factor = reinterpret_cast<__m512>(load_half(scales + b * kPanel + (column + v) * 16));
    DOGE_UNROLLED for (int r = 0; r < ROWS; r++) {
      float* to = y + r * ldy + (column + v) * 16;
      const __m512i q = ALONE ? _mm512_slli_epi32(_mm512_add_epi32(high[r][v], offset(r)), 8)
                              : _mm512_add_epi32(_mm512_slli_epi32(high[r][v], 8), low[r][v]);
      const __m512 before = b == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
      __m512 total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), factor, before);
      if (last) {
        float step;
        std::memcpy(&step, x + r * stride, 4);
        total = _mm512_mul_ps(total, _mm512_set1_ps(step));
      }
      _mm512_storeu_ps(to, total);
    }
  }
}

// Block by block, so that each is read once for all rows and is near when its second half is wanted.
template <int ROWS, bool NIBBLES, bool ALONE>
void few_rows(int64_t k, int64_t block, int64_t ahead, const uint8_t* x, size_t stride, const uint8_t* panel,
              const uint16_t* scales, float* y, int64_t ldy) {
  for (int64_t b = 0; b < k / block; b++)
    for (int column = 0; column < 4; column += ALONE ? 4 : 2)
      block_of_rows<ROWS, NIBBLES, ALONE>(k, block, b, (b + 1) * block == k, column, ahead, x, stride, panel, scales, y, ldy);
}

template <bool NIBBLES>
void one_row(int64_t k, int64_t block, const uint8_t* x, const uint8_t* panel, const uint16_t* scales, float* y) {
  constexpr int64_t STEP = NIBBLES ? 8 : 4;
  const __m512i mask = _mm512_set1_epi8(15);
  const int8_t* high = reinterpret_cast<const int8_t*>(x + quantized_digits(k, block));
  const int8_t* low = high + k;
  __m512 total[4];
  for (int v = 0; v < 4; v++) total[v] = _mm512_setzero_ps();
  for (int64_t b = 0; b < k / block; b++) {
    int32_t digit_sum;
    std::memcpy(&digit_sum, x + 4 + 4 * b, 4);
    __m512i acc_high[4], acc_low[4];
    for (int v = 0; v < 4; v++) {
      acc_high[v] = _mm512_setzero_si512();
      acc_low[v] = _mm512_set1_epi32((NIBBLES ? -8 : -128) * digit_sum);
    }
    for (int64_t i = b * block; i < (b + 1) * block; i += STEP) {
      __m512i w[4];
      const uint8_t* weights = panel + i / STEP * kPanel * 4;
      for (int v = 0; v < 4; v++) __builtin_prefetch(weights + kAhead + v * 64);
      for (int v = 0; v < 4; v++) w[v] = _mm512_loadu_si512(weights + v * 64);
      if (NIBBLES) {
        __m512i first[4];
        for (int v = 0; v < 4; v++) {
          first[v] = _mm512_and_si512(w[v], mask);
          w[v] = _mm512_and_si512(_mm512_srli_epi16(w[v], 4), mask);
        }
        const __m512i h = four(high + i), l = four(low + i);
        for (int v = 0; v < 4; v++) {
          acc_high[v] = _mm512_dpbusd_epi32(acc_high[v], first[v], h);
          acc_low[v] = _mm512_dpbusd_epi32(acc_low[v], first[v], l);
        }
      }
      const int64_t j = NIBBLES ? i + 4 : i;
      const __m512i h = four(high + j), l = four(low + j);
      for (int v = 0; v < 4; v++) {
        acc_high[v] = _mm512_dpbusd_epi32(acc_high[v], w[v], h);
        acc_low[v] = _mm512_dpbusd_epi32(acc_low[v], w[v], l);
      }
    }
    for (int v = 0; v < 4; v++) {
      const __m512 factor = reinterpret_cast<__m512>(load_half(scales + b * kPanel + v * 16));
      const __m512i q = _mm512_add_epi32(_mm512_slli_epi32(acc_high[v], 8), acc_low[v]);
      total[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), factor, total[v]);
    }
  }
  float step;
  std::memcpy(&step, x, 4);
  for (int v = 0; v < 4; v++) _mm512_storeu_ps(y + v * 16, _mm512_mul_ps(total[v], _mm512_set1_ps(step)));
}

// Tiles of nearly equal size, of as many rows as have their sums in registers.
template <bool NIBBLES, bool ALONE>
void gemm_digits(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                 const uint16_t* scales, float* y, int64_t ldy) {
  constexpr int64_t MOST = NIBBLES && ALONE ? 5 : 6;
  int64_t ahead = kAheadOfRows;  // the first tile waits for memory, and the others find the panel near
  for (int64_t tiles = (rows + MOST - 1) / MOST; tiles > 0; tiles--, ahead = 0) {
    const int64_t now = (rows + tiles - 1) / tiles;
    switch (now) {
      case 1:
        if (ALONE)
          few_rows<1, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy);
        else
          one_row<NIBBLES>(k, block, x, panel, scales, y);
        break;
      case 2: few_rows<2, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy); break;
      case 3: few_rows<3, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy); break;
      case 4: few_rows<4, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy); break;
      case 5: few_rows<5, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy); break;
      default: few_rows<MOST, NIBBLES, ALONE>(k, block, ahead, x, stride, panel, scales, y, ldy);
    }
    rows -= now;
    x += now * static_cast<int64_t>(stride);
    y += now * ldy;
  }
}

void gemm_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<false, false>(rows, k, block, x, stride, panel, scales, y, ldy);
}

void gemm_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<true, false>(rows, k, block, x, stride, panel, scales, y, ldy);
}

void rough_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
              const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<false, true>(rows, k, block, x, stride, panel, scales, y, ldy);
}

void rough_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
              const uint16_t* scales, float* y, int64_t ldy) {
  gemm_digits<true, true>(rows, k, block, x, stride, panel, scales, y, ldy);
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

const Isa isa_avx512 = [] {
  Isa table = DOGE_TABLE("avx512");
  table.rough_i8 = rough_i8;
  table.rough_i4 = rough_i4;
  return table;
}();
}  // namespace doge
#endif
