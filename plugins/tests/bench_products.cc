// Reports, and judges nothing: how fast the loops multiply quantized panels with 1 to 64 rows, out of the second-level
// cache and out of memory, beside plain reads of as many bytes.
//
//   bench_products [int8|int4] [k] [block] [threads] [rows ...]
//
// Times are those of the best round; in a round all numbers of rows take turns. A thread has panels of its own.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/half.h"
#include "../kernels/isa.h"
#include "../kernels/memory.h"
#include "../kernels/packed.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Setting {
  bool nibbles = false;
  int64_t k = 512, block = 128;
  size_t threads = 2;
  std::vector<int64_t> rows{1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64};
};

// What one thread multiplies: `panels` panels, and rows that all of them meet.
struct Work {
  doge::Packed weights;
  std::vector<uint8_t> memory;
  const uint8_t* digits = nullptr;
  int64_t stride = 0;
  std::vector<float> out;
};

void fill(const Setting& s, int64_t panels, int64_t most_rows, unsigned seed, Work* work) {
  const int64_t n = panels * doge::kPanel, k = s.k;
  std::vector<uint8_t> data(static_cast<size_t>(n * k) / (s.nibbles ? 2 : 1));
  uint32_t state = seed * 2654435761u + 1;
  for (uint8_t& byte : data) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  const std::vector<uint16_t> scales(static_cast<size_t>(n * (k / s.block)), doge::float_to_half(0.01f));
  work->weights = doge::Packed({s.nibbles ? doge::Dtype::int4 : doge::Dtype::int8, n, k, data.data(), scales.data(), s.block});
  const size_t stride = doge::quantized_bytes(k, s.block);
  work->memory.resize(stride * static_cast<size_t>(most_rows) + 64);
  uint8_t* digits = work->memory.data() + 64 - reinterpret_cast<uintptr_t>(work->memory.data()) % 64;
  std::vector<float> x(static_cast<size_t>(k));
  for (int64_t r = 0; r < most_rows; r++) {
    for (float& value : x) value = static_cast<float>(static_cast<int32_t>(state = state * 1664525u + 1013904223u)) * 0x1p-31f;
    doge::isa().quantize_row(x.data(), k, s.block, digits + static_cast<size_t>(r) * stride);
  }
  work->digits = digits;
  work->stride = static_cast<int64_t>(stride);
  work->out.resize(static_cast<size_t>(most_rows * doge::kPanel));
}

// Seconds in which every thread runs body(its number) `passes` times.
template <class Body>
double timed(size_t threads, int64_t passes, Body&& body) {
  std::atomic<size_t> ready{0};
  Clock::time_point begun;
  const auto own = [&](size_t t) {
    if (++ready == threads) begun = Clock::now();
    while (ready < threads) {
    }
    for (int64_t pass = 0; pass < passes; pass++) body(t);
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; t++) others.emplace_back(own, t);
  own(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

double best(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

void table(const Setting& s, const char* where, size_t bytes_a_thread, int rounds, double seconds_a_round) {
  const double scales = 2.0 / static_cast<double>(s.block), panel_bytes =
      static_cast<double>(s.k * doge::kPanel) * ((s.nibbles ? 0.5 : 1.0) + scales);
  const int64_t panels = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(bytes_a_thread) / panel_bytes));
  std::vector<Work> works(s.threads);
  for (size_t t = 0; t < s.threads; t++)
    fill(s, panels, *std::max_element(s.rows.begin(), s.rows.end()), static_cast<unsigned>(t + 1), &works[t]);
  const auto multiply = [&](int64_t rows) {
    return [&works, panels, rows](size_t t) {
      Work& w = works[t];
      for (int64_t p = 0; p < panels; p++) w.weights.multiply(p, rows, w.digits, w.stride, w.out.data(), doge::kPanel);
    };
  };
  std::vector<uint64_t> sums(s.threads * 8);
  std::vector<std::shared_ptr<uint8_t>> plain;
  const auto plain_bytes = static_cast<size_t>(panel_bytes * static_cast<double>(panels)) / 64 * 64;
  for (size_t t = 0; t < s.threads; t++) {
    plain.push_back(doge::weight_memory(plain_bytes));
    std::memset(plain.back().get(), static_cast<int>(t + 1), plain_bytes);
  }
  const auto read = [&](size_t t) {
    const auto* words = reinterpret_cast<const uint64_t*>(plain[t].get());
    uint64_t sum[16] = {};
    for (size_t i = 0; i < plain_bytes / 8; i += 16)
      for (size_t lane = 0; lane < 16; lane++) sum[lane] += words[i + lane];
    for (uint64_t each : sum) sums[t * 8] += each;
  };
  std::vector<std::vector<double>> times(s.rows.size() + 1);
  for (int round = -1; round < rounds; round++)
    for (size_t i = 0; i <= s.rows.size(); i++) {
      const auto once = [&](int64_t passes) {
        return i < s.rows.size() ? timed(s.threads, passes, multiply(s.rows[i])) : timed(s.threads, passes, read);
      };
      static std::vector<int64_t> passes;
      if (round < 0) {  // how often makes a round
        if (i == 0) passes.clear();
        once(1);
        passes.push_back(std::max<int64_t>(1, static_cast<int64_t>(seconds_a_round / std::max(1e-7, once(8) / 8))));
        continue;
      }
      times[i].push_back(once(passes[i]) / static_cast<double>(passes[i]));
    }
  const double bytes = panel_bytes * static_cast<double>(panels) * static_cast<double>(s.threads);
  std::printf("%s, %.2f MB a thread (plain reads: %.1f GB/s)\n", where, bytes / static_cast<double>(s.threads) * 1e-6,
              static_cast<double>(plain_bytes * s.threads) / best(times.back()) * 1e-9);
  std::printf("  rows    us a panel   GB/s of weights   G products/s   times one row\n");
  const double one = best(times[0]);
  for (size_t i = 0; i < s.rows.size(); i++) {
    const double seconds = best(times[i]);
    std::printf("  %4lld   %11.3f   %15.1f   %12.1f   %13.2f\n", static_cast<long long>(s.rows[i]),
                seconds / static_cast<double>(panels) * 1e6, bytes / seconds * 1e-9,
                static_cast<double>(s.rows[i] * s.k * doge::kPanel * panels) * static_cast<double>(s.threads) / seconds * 1e-9,
                seconds / one);
  }
}

}  // namespace

int main(int count, char** arguments) {
  Setting s;
  if (count > 1) s.nibbles = std::strcmp(arguments[1], "int4") == 0;
  s.block = s.nibbles ? 32 : 128;
  if (count > 2) s.k = std::atoll(arguments[2]);
  if (count > 3) s.block = std::atoll(arguments[3]);
  if (count > 4) s.threads = static_cast<size_t>(std::max(1, std::atoi(arguments[4])));
  if (count > 5) s.rows.clear();
  for (int i = 5; i < count; i++) s.rows.push_back(std::max<int64_t>(1, std::atoll(arguments[i])));
  std::printf("%s, %s, k %lld, blocks of %lld, %zu threads\n", doge::instruction_set(), s.nibbles ? "int4" : "int8",
              static_cast<long long>(s.k), static_cast<long long>(s.block), s.threads);
  table(s, "second-level cache", 256 << 10, 15, 0.004);
  table(s, "memory", 64 << 20, 9, 0.01);
  return 0;
}
