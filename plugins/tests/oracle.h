// What the kernels compute, row by row in float64, with no thought of speed; and what a test needs to compare.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/doge_kernels.h"
#include "../kernels/half.h"
#include "../kernels/packed.h"

namespace oracle {

using doge::Matrix;
using Doubles = std::vector<double>;
using Floats = std::vector<float>;

inline int failures = 0;
inline void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED: %s\n", what.c_str());
  failures++;
}
inline int finish(const char* name) {
  std::printf("%s: %s\n", name, failures ? "failed" : "passed");
  return failures ? 1 : 0;
}

// A test that was asked to run by DOGE_EXPORT_ISA on loops that this processor or this build lacks would test others
// under their name. It ends before main, and ctest reports it as skipped.
constexpr int kSkipped = 77;
inline bool skip_unless_asked_for() {
  const char* asked = std::getenv("DOGE_EXPORT_ISA");
  if (asked == nullptr || asked == std::string(doge::instruction_set())) return true;
  std::printf("skipped: %s was asked for, and this processor has %s\n", asked, doge::instruction_set());
  std::fflush(stdout);
  std::_Exit(kSkipped);
}
inline const bool runs_what_was_asked_for = skip_unless_asked_for();

// The largest difference, relative to the largest expected value.
template <class A, class B>
double distance(const A& got, const B& expected) {
  double worst = 0, size = 1e-30;
  for (size_t i = 0; i < expected.size(); i++) {
    const double difference = std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (!(difference <= worst)) worst = difference;
    size = std::max(size, std::fabs(static_cast<double>(expected[i])));
  }
  return worst / size;
}
template <class F>
bool throws(F&& f) {
  try {
    f();
  } catch (const doge::Error&) {
    return true;
  }
  return false;
}

// Threads of its own for every call: slow, but any number of them.
struct Pool : doge::Threads {
  size_t n;
  explicit Pool(size_t count) : n(count) {}
  void run(void (*task)(void*, size_t), void* argument, size_t count) override {
    if (n == 1) {
      for (size_t i = 0; i < count; i++) task(argument, i);
      return;
    }
    std::vector<std::thread> threads;
    for (size_t i = 1; i < count; i++) threads.emplace_back(task, argument, i);
    task(argument, 0);
    for (auto& thread : threads) thread.join();
  }
  size_t count() const override { return n; }
};

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  Floats normal(int64_t n, float spread = 1.0f) {
    std::normal_distribution<float> draw(0, spread);
    Floats result(static_cast<size_t>(n));
    for (float& x : result) x = draw(engine);
    return result;
  }
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine); }
};

// A matrix with its own memory, drawn at random, and its values.
struct OwnMatrix {
  Floats floats;
  std::vector<uint16_t> halves, scales;
  std::vector<int8_t> bytes;
  Matrix matrix;
  Doubles values;
  OwnMatrix() = default;
  OwnMatrix(const OwnMatrix&) = delete;
  OwnMatrix& operator=(const OwnMatrix&) = delete;

  void draw(Random& random, doge::Dtype dtype, int64_t n, int64_t k, int64_t block = 0, float spread = 0.3f) {
    floats = random.normal(n * k, spread);
    matrix = Matrix{dtype, n, k, floats.data(), nullptr, 0};
    const auto count = static_cast<size_t>(n * k);
    if (dtype == doge::Dtype::float16 || dtype == doge::Dtype::bfloat16) {
      for (float x : floats)
        halves.push_back(dtype == doge::Dtype::float16 ? doge::float_to_half(x) : doge::float_to_bfloat16(x));
      matrix.data = halves.data();
    }
    if (dtype == doge::Dtype::int8 || dtype == doge::Dtype::int4) {
      const int64_t range = dtype == doge::Dtype::int8 ? 255 : 16, low = dtype == doge::Dtype::int8 ? -127 : -8;
      bytes.assign(dtype == doge::Dtype::int8 ? count : (count + 1) / 2, 0);
      for (size_t i = 0; i < count; i++) {
        const auto q = static_cast<int8_t>(random.below(range) + low);
        if (dtype == doge::Dtype::int8)
          bytes[i] = q;
        else
          bytes[i / 2] = static_cast<int8_t>(bytes[i / 2] | static_cast<int8_t>((q & 15) << (i % 2 * 4)));
      }
      for (int64_t i = 0; i < n * (k / block); i++)
        scales.push_back(doge::float_to_half(spread / 80 * (1.0f + static_cast<float>(random.below(100)) / 100)));
      matrix.data = bytes.data();
      matrix.scales = scales.data();
      matrix.block = block;
    }
    for (int64_t row = 0; row < n; row++)
      for (int64_t i = 0; i < k; i++) values.push_back(doge::element(matrix, row, i));
  }
};

// x [rows, k] times a matrix [n, k], plus a bias where there is one.
inline Doubles linear(const Doubles& x, int64_t rows, const OwnMatrix& w, const Floats& bias = {}) {
  const int64_t n = w.matrix.n, k = w.matrix.k;
  Doubles result(static_cast<size_t>(rows * n));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t o = 0; o < n; o++) {
      double sum = bias.empty() ? 0 : bias[static_cast<size_t>(o)];
      for (int64_t i = 0; i < k; i++) sum += x[static_cast<size_t>(r * k + i)] * w.values[static_cast<size_t>(o * k + i)];
      result[static_cast<size_t>(r * n + o)] = sum;
    }
  return result;
}

inline void rms_norm(double* x, int64_t n, const Floats& weight, double epsilon) {
  double squares = 0;
  for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
  const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + epsilon);
  for (int64_t i = 0; i < n; i++) x[i] *= inverse * weight[static_cast<size_t>(i)];
}

inline double activate(const std::string& name, double x) {
  if (name == "silu") return x / (1 + std::exp(-x));
  if (name == "gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (name == "gelu_new") return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  if (name == "relu") return std::max(x, 0.0);
  if (name == "relu2") return std::max(x, 0.0) * std::max(x, 0.0);
  if (name == "sigmoid") return 1 / (1 + std::exp(-x));
  return std::tanh(x);
}

// The cache of one layer, as doubles: keys and values [batch, kv_heads, length, head_dim].
struct Cache {
  std::vector<Doubles> keys, values;  // [batch * kv_heads], each [length, head_dim]
};

// One call: query [batch * sequence, heads * d] and so on, as projected; appends to the cache. mask [batch, total].
struct AttentionCase {
  doge::AttentionConfig config;
  doge::AttentionWeights weights;
};
inline Doubles attention(const AttentionCase& c, Cache& cache, int64_t batch, int64_t sequence, Doubles q, Doubles k,
                         const Doubles& v, const Floats& cos, const Floats& sin, const std::vector<int64_t>& mask,
                         std::vector<bool>* keep = nullptr, doge::Dtype dtype = doge::Dtype::float32) {
  const int64_t H = c.config.num_heads, G = c.config.num_kv_heads, D = c.config.head_dim, group = H / G;
  const int64_t past = static_cast<int64_t>(cache.keys[0].size()) / D, total = past + sequence;
  auto prepare = [&](double* x, const Floats& norm, int64_t row) {
    rms_norm(x, D, norm, c.config.epsilon);
    Doubles old(x, x + D);
    for (int64_t i = 0; i < D / 2; i++) {
      const double cs = cos[static_cast<size_t>(row * D / 2 + i)], sn = sin[static_cast<size_t>(row * D / 2 + i)];
      x[i] = old[static_cast<size_t>(i)] * cs - old[static_cast<size_t>(i + D / 2)] * sn;
      x[i + D / 2] = old[static_cast<size_t>(i + D / 2)] * cs + old[static_cast<size_t>(i)] * sn;
    }
  };
  for (int64_t row = 0; row < batch * sequence; row++) {
    for (int64_t h = 0; h < H; h++) prepare(&q[static_cast<size_t>((row * H + h) * D)], c.weights.q_norm, row);
    for (int64_t g = 0; g < G; g++) {
      double* key = &k[static_cast<size_t>((row * G + g) * D)];
      prepare(key, c.weights.k_norm, row);
      const auto pair = static_cast<size_t>(row / sequence * G + g);
      cache.keys[pair].insert(cache.keys[pair].end(), key, key + D);
      const double* value = &v[static_cast<size_t>((row * G + g) * D)];
      cache.values[pair].insert(cache.values[pair].end(), value, value + D);
    }
  }
  Doubles output(static_cast<size_t>(batch * sequence * H * D), 0.0);
  const int64_t sliding = c.config.sliding_window;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t g = 0; g < G; g++) {
      const auto pair = static_cast<size_t>(b * G + g);
      Floats dt(static_cast<size_t>(total));
      for (int64_t j = 0; j < total; j++) {
        double sum = c.weights.dt_bias.empty() ? 0 : c.weights.dt_bias[static_cast<size_t>(g)];
        for (int64_t p = 0; p < G; p++)
          for (int64_t i = 0; i < D; i++)
            sum += cache.values[static_cast<size_t>(b * G + p)][static_cast<size_t>(j * D + i)] *
                   c.weights.dt_weight[static_cast<size_t>((g * G + p) * D + i)];
        const double soft = sum > 20 ? sum : std::log1p(std::exp(sum));
        dt[static_cast<size_t>(j)] = static_cast<float>(std::exp(c.weights.A[static_cast<size_t>(g)] * soft));
        if (dtype == doge::Dtype::float16)  // as the cache keeps it: this decides what ties
          dt[static_cast<size_t>(j)] = doge::half_to_float(doge::float_to_half(dt[static_cast<size_t>(j)]));
      }
      for (int64_t s = 0; s < sequence; s++) {
        std::vector<int64_t> seen;
        for (int64_t j = 0; j <= past + s; j++)
          if (mask[static_cast<size_t>(b * total + j)] && !(sliding && j <= past + s - sliding)) seen.push_back(j);
        std::stable_sort(seen.begin(), seen.end(),
                         [&](int64_t x, int64_t y) { return dt[static_cast<size_t>(x)] > dt[static_cast<size_t>(y)]; });
        if (static_cast<int64_t>(seen.size()) > c.config.keep_window_size)
          seen.resize(static_cast<size_t>(c.config.keep_window_size));
        if (keep) {
          const size_t first = keep->size();
          keep->resize(first + static_cast<size_t>(total), false);
          for (int64_t j : seen) (*keep)[first + static_cast<size_t>(j)] = true;
        }
        const bool blind = seen.empty();
        if (blind)
          for (int64_t j = sliding ? std::max<int64_t>(0, past - sliding + 1) : 0; j < total; j++) seen.push_back(j);
        for (int64_t h = g * group; h < (g + 1) * group; h++) {
          const double* query = &q[static_cast<size_t>(((b * sequence + s) * H + h) * D)];
          Doubles scores;
          for (int64_t j : seen) {
            double score = 0;
            for (int64_t i = 0; i < D; i++) score += query[i] * cache.keys[pair][static_cast<size_t>(j * D + i)];
            scores.push_back(blind ? 0 : score * c.config.scale + dt[static_cast<size_t>(j)]);
          }
          const double peak = *std::max_element(scores.begin(), scores.end());
          double sum = 0;
          for (double& x : scores) sum += x = std::exp(x - peak);
          for (size_t n = 0; n < seen.size(); n++)
            for (int64_t i = 0; i < D; i++)
              output[static_cast<size_t>(((b * sequence + s) * H + h) * D + i)] +=
                  scores[n] / sum * cache.values[pair][static_cast<size_t>(seen[n] * D + i)];
        }
      }
    }
  return output;
}

// One token's experts: every pair of both halves, sorted.
inline std::vector<std::pair<int64_t, double>> route(const doge::RoutingConfig& c, const double* x, const double* y) {
  const int64_t n = c.num_keys;
  auto order = [n](const double* values) {
    std::vector<int64_t> result(static_cast<size_t>(n));
    std::iota(result.begin(), result.end(), 0);
    std::stable_sort(result.begin(), result.end(), [values](int64_t a, int64_t b) { return values[a] > values[b]; });
    return result;
  };
  const auto first = order(x), second = order(y);
  std::vector<std::pair<int64_t, double>> pairs;
  for (int64_t i : first)
    for (int64_t j : second) pairs.emplace_back(i * n + j, static_cast<float>(x[i]) + static_cast<float>(y[j]));
  std::stable_sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  pairs.resize(static_cast<size_t>(c.num_experts_per_tok));
  double sum = 0;
  const double peak = pairs[0].second;
  for (auto& pair : pairs) sum += pair.second = std::exp(pair.second - peak);
  for (auto& pair : pairs) pair.second /= sum;
  return pairs;
}

}  // namespace oracle
