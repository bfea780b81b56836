// Included before everything of llama.cpp: GCC before 12.4 believes that ldtilecfg reads 8 bytes of the 64
// (its bug 114098), drops the stores of the others, and llama.cpp's AMX products end in a segmentation fault.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
static inline void doge_load_tile_config(const void* config) {
  __asm__ volatile("ldtilecfg\t%0" ::"m"(*(const char(*)[64])config) : "memory");
}
#define _tile_loadconfig doge_load_tile_config
#endif
