"""The roofline: how fast N threads can read as many bytes as a token's weights take, over and over.

A plain sum over a buffer, in C for this processor, compiled on the spot: no decoder that reads its weights
once a token can be faster for long. The threads never wait for each other, as a decoder's must.
"""

import ctypes
import subprocess
import time
from pathlib import Path
from typing import Any

from peers import base

_SOURCE = r"""
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
  const uint64_t* data;
  size_t words;
  int passes, threads;
  atomic_int* ready;
  uint64_t sum;
} Part;

static void* work(void* argument) {
  Part* part = argument;
  atomic_fetch_add(part->ready, 1);
  while (atomic_load(part->ready) < part->threads) {}
  uint64_t total = 0;
  for (int pass = 0; pass < part->passes; pass++) {
    __asm__ volatile("" : : "r"(part->data) : "memory");  // every pass reads anew
    uint64_t sum[32] = {0};
    for (size_t i = 0; i + 32 <= part->words; i += 32)
      for (int lane = 0; lane < 32; lane++) sum[lane] += part->data[i + lane];
    for (int lane = 0; lane < 32; lane++) total += sum[lane] ^ pass;
  }
  part->sum = total;
  return 0;
}

// Seconds of `passes` passes over `bytes` bytes; the buffer is made once and kept.
double read_passes(size_t bytes, int threads, int passes) {
  static uint64_t* data; static size_t held;
  static volatile uint64_t sink;
  if (held != bytes) {
    free(data);
    if (posix_memalign((void**)&data, 1 << 21, (bytes + 63) / 64 * 64)) return -1;
    memset(data, 1, bytes);
    held = bytes;
  }
  Part* parts = calloc(threads, sizeof(Part));
  pthread_t* ids = calloc(threads, sizeof(pthread_t));
  atomic_int ready = 0;
  size_t words = bytes / 8 / threads / 32 * 32;
  struct timespec a, b;
  for (int i = 0; i < threads; i++)
    parts[i] = (Part){data + i * words, words, passes, threads, &ready, 0};
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int i = 1; i < threads; i++) pthread_create(&ids[i], 0, work, &parts[i]);
  work(&parts[0]);
  for (int i = 1; i < threads; i++) pthread_join(ids[i], 0);
  clock_gettime(CLOCK_MONOTONIC, &b);
  for (int i = 0; i < threads; i++) sink += parts[i].sum;
  free(parts); free(ids);
  return (b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) * 1e-9;
}
"""

_library: Any = None
_bytes = 0
_threads = 0


def open(bytes_per_token: int, folder: str, threads: int) -> dict[str, Any]:
    global _library, _bytes, _threads
    started = time.perf_counter()
    source, library = Path(folder) / "roofline.c", Path(folder) / "roofline.so"
    source.write_text(_SOURCE)
    subprocess.run(
        ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)],
        check=True,
        capture_output=True,
    )
    _library = ctypes.CDLL(str(library))
    _library.read_passes.restype = ctypes.c_double
    _library.read_passes.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    _bytes, _threads = bytes_per_token, threads
    _library.read_passes(_bytes, _threads, 2)
    return {
        "seconds": time.perf_counter() - started,
        "versions": {},
        "note": f"{bytes_per_token / 1e6:.1f} MB of weights a token",
        "bytes_per_token": bytes_per_token,
    }


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    """A pass is a token; the first is not timed, as a prompt's is not."""
    _library.read_passes(_bytes, _threads, 1)
    yield 0
    _library.read_passes(_bytes, _threads, new_tokens - 1)
    yield from [0] * (new_tokens - 1)


if __name__ == "__main__":
    base.serve(open, tokens)
