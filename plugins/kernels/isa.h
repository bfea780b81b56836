// The inner loops, compiled once for each instruction set, and the choice among them at run time.
//
// All of them share one layout of weights: panels of 64 outputs. Float panels are [k][64]; int8 panels
// [k / 4][64][4] of q + 128 (of q, where Isa::flip is 0); int4 panels [k / 8][64][4], a byte holding k (low nibble) and k + 4 (high), as
// q + 8. Scales of a panel are float16 [k / block][64].
//
// A row of activations meets quantized weights as 16-bit integers, so that the result is the float product
// with these weights up to 2^-15 of the row's largest element: see quantize_row.
//
// The order of every sum depends on its length alone, never on the number of rows or on the thread, so that
// a token's value vector is the same in a prefill and in a decode step: equal keys must tie.
#pragma once

#include <cstddef>
#include <cstdint>

namespace doge {

constexpr int64_t kPanel = 64;

struct Isa {
  const char* name;
  // y[r][0..64) = sum over i < k of x[r][i] * b[i][0..64), b with a stride of ldb.
  void (*gemm_f32)(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* b, int64_t ldb, float* y,
                   int64_t ldy);
  void (*gemm_f16)(int64_t rows, int64_t k, const float* x, int64_t ldx, const uint16_t* panel, float* y,
                   int64_t ldy);
  // The same for quantized panels; x are rows of quantize_row, `stride` bytes apart.
  void (*gemm_i8)(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                  const uint16_t* scales, float* y, int64_t ldy);
  void (*gemm_i4)(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                  const uint16_t* scales, float* y, int64_t ldy);
  // One row: [float scale][int32 sum of each block][int32 sum of each block's high bytes][digits], q = round(x / scale),
  // |q| <= 127 * 256. The third is there for rough_i8 and rough_i4 alone.
  void (*quantize_row)(const float* x, int64_t k, int64_t block, uint8_t* row);
  // y = x / sqrt(mean(x^2) + epsilon) * weight; x and y may be the same.
  void (*rms_norm)(const float* x, const float* weight, float* y, int64_t n, float epsilon);
  // x[0..n) by the rotary embedding of one position: first half, second half.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t n);
  // scores[r][j] = q[r] . k[j] * scale for rows q of `d` and keys k of `d`.
  void (*dots)(int64_t rows, int64_t keys, int64_t d, const float* q, int64_t ldq, const float* k, float scale,
               float* scores, int64_t lds);
  // The same of 64 keys that lie as a panel [d][64], to the bit.
  void (*dots_panel)(int64_t rows, int64_t d, const float* q, int64_t ldq, const float* panel, float scale,
                     float* scores, int64_t lds);
  // out[r][0..d) += factors[r] * (sum over j < keys of p[r][j] * v[j][0..d)), summed from 0 on in the order of j.
  void (*weighted_sum)(int64_t rows, int64_t keys, int64_t d, const float* p, int64_t ldp, const float* factors,
                       const float* v, int64_t ldv, float* out, int64_t ldo);
  // scores[j] += dt[j] where dt[j] > threshold, or equal to it and j <= last; -inf elsewhere. Returns the max.
  float (*apply_mask)(int64_t n, float* scores, const float* dt, float threshold, int64_t last);
  // p[j] = exp(p[j] - shift); returns the sum.
  float (*exponentials)(int64_t n, float* p, float shift);
  void (*scale)(int64_t n, float* x, float factor);
  // out[j] = exp(A * softplus(v[j] . w + bias)) for `keys` vectors of `parts` pieces of d, piece p of key j
  // at v + p * part_stride + j * d; w: parts * d. In float64.
  void (*key_weights)(int64_t keys, int64_t parts, int64_t d, const float* v, int64_t part_stride, const double* w,
                      double bias, double A, float* out);
  void (*silu_mul)(int64_t n, float* gate, const float* up);  // gate = silu(gate) * up
  // to = residual * before + x
  void (*add_residual)(int64_t n, const float* residual, const float* before, const float* x, float* to);
  float (*dot)(int64_t n, const float* x, const float* y);
  float (*dot_f16)(int64_t n, const float* x, const uint16_t* y);
  float (*dot_i8)(int64_t n, const float* x, const int8_t* y);
  void (*axpy)(int64_t n, float a, const float* x, float* y);  // y += a * x
  void (*axpy_f16)(int64_t n, float a, const uint16_t* x, float* y);
  void (*axpy_i8)(int64_t n, float a, const int8_t* x, float* y);
  void (*widen_f16)(int64_t n, const uint16_t* x, float* y);
  void (*widen_i4)(int64_t n, const uint8_t* x, float* y);  // n even; the low nibble of a byte comes first
  float (*largest)(int64_t n, const float* x);  // -inf for none
  // rank[i] = how many of n elements come before x[i] in descending order, of equal ones the lower places.
  void (*ranks)(int64_t n, const float* x, int32_t* rank);
  uint64_t (*not_below)(const float* x, float floor);  // bit i for x[i] of a panel; NaN is not below
  // y[r] = x . row r of `rows` rows of k floats (or halves), summed in the order of gemm_f32: the same bits.
  void (*in_order_f32)(int64_t rows, int64_t k, const float* x, const float* const* row, float* y);
  void (*in_order_f16)(int64_t rows, int64_t k, const float* x, const uint16_t* const* row, float* y);
  // The same for int8 rows with scales[k / block], x one row of quantize_row: the bits of gemm_i8.
  void (*in_order_i8)(int64_t rows, int64_t k, int64_t block, const uint8_t* x, const int8_t* const* row,
                      const uint16_t* const* scales, float* y);
  // A random word for each token of a panel: words[64], of counters [first, first + 16), rest[3] and key[2].
  void (*random_words)(uint32_t first, const uint32_t* rest, const uint32_t* key, uint32_t* words);
  // Of a panel with logits x, `most` at most: scores[i] = x[i] / temperature, -inf for NaN; highest[i]: an upper bound
  // of the score, which is the score where x and `most` are the same; upper[i]: one of score + noise of words[i], or
  // highest[i] where words is null. Returns bit i where upper[i] is not below floor.
  uint64_t (*draw_bounds)(const float* x, const float* most, float temperature, const uint32_t* words, float floor,
                          float* scores, float* highest, float* upper);
  // The sum of e^(score - best) of a panel, and of those whose score is above the limit; to a few 10^-6.
  float (*probabilities)(const float* scores, float best, float limit, float* above);
  uint8_t flip = 0x80;  // int8 panels hold q ^ flip: q + 128, or, where the loops want it signed, q itself
  // gemm_i8 and gemm_i4 up to what the low bytes of the digits give, for LogitScreen; null where that is no faster. Where
  // it is not, digits are int8 high[k], low[k], and q = 256 * high + low.
  decltype(gemm_i8) rough_i8 = nullptr, rough_i4 = nullptr;
};

// Bytes of a row of quantize_row, and where its digits begin; a multiple of 64 each.
inline size_t quantized_digits(int64_t k, int64_t block) {
  return (sizeof(float) + 2 * sizeof(int32_t) * static_cast<size_t>(k / block) + 63) / 64 * 64;
}
inline size_t quantized_bytes(int64_t k, int64_t block) {
  return quantized_digits(k, block) + (static_cast<size_t>(k) * 2 + 63) / 64 * 64;
}

extern const Isa isa_generic;
#if defined(__x86_64__)
extern const Isa isa_avx2;
extern const Isa isa_avx512;
#if defined(__linux__)
const Isa& isa_amx();
bool amx_allowed();  // asks the system, which gives tiles only to a process that asked
#endif
#elif defined(__aarch64__)
extern const Isa isa_neon;
extern const Isa isa_dotprod;
extern const Isa isa_i8mm;
#endif

// The best one that this processor has; DOGE_EXPORT_ISA=generic|avx2|avx512|amx asks for less, on ARM
// generic|neon|dotprod|i8mm.
const Isa& isa();

}  // namespace doge
