// AMX tiles for quantized weights and many rows; for the rest, AVX-512. A panel of int8 is a column of tiles as
// it lies. The sums of a block are integers, so that they, and what is made of them in the same order, have
// the bits that isa_avx512.cc gives.
#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "isa.h"
#include "memory.h"

namespace doge {
namespace {

constexpr int64_t kTile = 16;       // rows of activations, and outputs, of a tile
constexpr int64_t kFewRows = 6;     // fewer are no slower without tiles
constexpr int64_t kMostBlocks = 512;

// In assembly, since GCC before 12.4 believes that ldtilecfg reads 8 bytes of the 64 (its bug 114098), and
// its tile loads do not say that they read memory.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
inline void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
inline void release() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int T>
inline void load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
inline void store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}
// Not by tilezero: the product that follows one takes three times as long (Xeon, Sapphire Rapids).
template <int T>
inline void clear() {
  alignas(64) static const uint8_t zeros[64] = {};
  load<T>(zeros, 0);
}
template <int SUM, int SIGNED, int UNSIGNED>
inline void multiply() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(SIGNED), "i"(UNSIGNED));
}

struct alignas(64) Sums {
  int32_t high[kTile][kTile], low[kTile][kTile];
};

struct Product {
  int64_t rows, k, block, chunk;  // rows <= kTile; chunk: the inputs that a tile takes, which divide a block
  const uint8_t* x;
  int64_t stride;
  const uint8_t* panel;

  // Tiles FIRST and FIRST + 1 are the sums of block b for the outputs from `column` on.
  template <int FIRST>
  void sum(int64_t b, int64_t column, Sums* to) const {
    const uint8_t* digits = x + quantized_digits(k, block);
    clear<FIRST>();
    clear<FIRST + 1>();
    for (int64_t i = b * block; i < (b + 1) * block; i += chunk) {
      load<6>(panel + i * kPanel + column * 4, kPanel * 4);
      load<4>(digits + i, stride);
      multiply<FIRST, 4, 6>();
      load<5>(digits + k + i, stride);
      multiply<FIRST + 1, 5, 6>();
    }
    store<FIRST>(to->high, kTile * 4);
    store<FIRST + 1>(to->low, kTile * 4);
  }
};

inline void add_block(const Sums& sums, const int32_t* offsets, const uint16_t* scales, __m512* total) {
  const __m512 factor = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  for (int64_t r = 0; r < kTile; r++) {
    const __m512i low = _mm512_add_epi32(_mm512_load_si512(sums.low[r]), _mm512_set1_epi32(offsets[r]));
    const __m512i q = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(sums.high[r]), 8), low);
    total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), factor, total[r]);
  }
}

void multiply_tile(const Product& p, int32_t zero_point, const uint16_t* scales, float* y, int64_t ldy) {
  const int64_t blocks = p.k / p.block;
  alignas(64) int32_t offsets[kMostBlocks * kTile];  // what the weights' zero point adds to each sum
  alignas(64) float steps[kTile] = {};
  for (int64_t r = 0; r < kTile; r++) {
    if (r < p.rows) std::memcpy(&steps[r], p.x + r * p.stride, 4);
    for (int64_t b = 0; b < blocks; b++) {
      int32_t digit_sum = 0;
      if (r < p.rows) std::memcpy(&digit_sum, p.x + r * p.stride + 4 + 4 * b, 4);
      offsets[b * kTile + r] = -zero_point * digit_sum;
    }
  }
  Sums sums[2];
  if (p.rows < kTile) std::memset(sums, 0, sizeof(sums));
  for (int64_t column = 0; column < kPanel; column += kTile) {
    __m512 total[kTile];
    for (int64_t r = 0; r < kTile; r++) total[r] = _mm512_setzero_ps();
    p.sum<0>(0, column, &sums[0]);
    for (int64_t b = 0; b < blocks; b += 2) {  // a block is summed while the one before is added
      if (b + 1 < blocks) p.sum<2>(b + 1, column, &sums[1]);
      add_block(sums[0], offsets + b * kTile, scales + b * kPanel + column, total);
      if (b + 1 == blocks) break;
      if (b + 2 < blocks) p.sum<0>(b + 2, column, &sums[0]);
      add_block(sums[1], offsets + (b + 1) * kTile, scales + (b + 1) * kPanel + column, total);
    }
    for (int64_t r = 0; r < kTile; r++)
      if (r < p.rows) _mm512_storeu_ps(y + r * ldy + column, _mm512_mul_ps(total[r], _mm512_set1_ps(steps[r])));
  }
}

// The most inputs, at most 64 and a multiple of 4, that a tile takes of a block.
int64_t chunk_of(int64_t block) {
  int64_t parts = (block + 63) / 64;
  while (block % parts || block / parts % 4) parts++;
  return block / parts;
}

bool pays(int64_t rows, int64_t k, int64_t block) {
  return rows >= kFewRows && k / block <= kMostBlocks && chunk_of(block) >= 32;
}

void multiply_rows(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
                   int32_t zero_point, const uint16_t* scales, float* y, int64_t ldy) {
  Product product{kTile, k, block, chunk_of(block), x, static_cast<int64_t>(stride), panel};
  int64_t configured = 0;
  for (; rows > 0; rows -= product.rows) {
    product.rows = rows < kTile ? rows : kTile;
    if (product.rows != configured) {
      TileConfig config;
      for (int t = 0; t < 6; t++) {
        config.rows[t] = static_cast<uint8_t>(product.rows);
        config.row_bytes[t] = static_cast<uint16_t>(t < 4 ? kTile * 4 : product.chunk);
      }
      config.rows[6] = static_cast<uint8_t>(product.chunk / 4);
      config.row_bytes[6] = kTile * 4;
      configure(config);
      configured = product.rows;
    }
    multiply_tile(product, zero_point, scales, y, ldy);
    product.x += product.rows * product.stride;
    y += product.rows * ldy;
  }
  release();
}

void gemm_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  if (!pays(rows, k, block)) return isa_avx512.gemm_i8(rows, k, block, x, stride, panel, scales, y, ldy);
  multiply_rows(rows, k, block, x, stride, panel, 128, scales, y, ldy);
}

void gemm_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
             const uint16_t* scales, float* y, int64_t ldy) {
  if (!pays(rows, k, block)) return isa_avx512.gemm_i4(rows, k, block, x, stride, panel, scales, y, ldy);
  uint8_t* bytes = thread_bytes(static_cast<size_t>(k * kPanel));
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int64_t i = 0; i < k / 8 * kPanel * 4; i += 64) {
    const __m512i pair = _mm512_loadu_si512(panel + i);
    uint8_t* to = bytes + i / 256 * 512 + i % 256;
    _mm512_storeu_si512(to, _mm512_and_si512(pair, nibble));
    _mm512_storeu_si512(to + 256, _mm512_and_si512(_mm512_srli_epi16(pair, 4), nibble));
  }
  multiply_rows(rows, k, block, x, stride, bytes, 8, scales, y, ldy);
}

// With tiles both bytes take less than one without.
void rough_i8(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
              const uint16_t* scales, float* y, int64_t ldy) {
  (pays(rows, k, block) ? gemm_i8 : isa_avx512.rough_i8)(rows, k, block, x, stride, panel, scales, y, ldy);
}

void rough_i4(int64_t rows, int64_t k, int64_t block, const uint8_t* x, size_t stride, const uint8_t* panel,
              const uint16_t* scales, float* y, int64_t ldy) {
  (pays(rows, k, block) ? gemm_i4 : isa_avx512.rough_i4)(rows, k, block, x, stride, panel, scales, y, ldy);
}

}  // namespace

bool amx_allowed() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, for the whole process
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

const Isa& isa_amx() {
  static const Isa table = [] {
    Isa isa = isa_avx512;
    isa.name = "amx";
    isa.gemm_i8 = gemm_i8;
    isa.gemm_i4 = gemm_i4;
    isa.rough_i8 = rough_i8;
    isa.rough_i4 = rough_i4;
    return isa;
  }();
  return table;
}

}  // namespace doge
#endif
