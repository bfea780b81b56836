#include "experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "half.h"
#include "packed.h"
#include "team.h"

namespace doge {

Activation activation_from_name(const std::string& name) {
  static const struct {
    const char* name;
    Activation activation;
  } kNames[] = {{"silu", Activation::silu},         {"swish", Activation::silu},
                {"gelu", Activation::gelu},         {"gelu_new", Activation::gelu_tanh},
                {"gelu_pytorch_tanh", Activation::gelu_tanh}, {"relu", Activation::relu},
                {"relu2", Activation::relu2},       {"sigmoid", Activation::sigmoid},
                {"tanh", Activation::tanh}};
  for (const auto& row : kNames)
    if (name == row.name) return row.activation;
  throw Error("The activation '" + name + "' has no kernel.");
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu: return x / (1.0f + std::exp(-x));
    case Activation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::relu: return x > 0 ? x : 0.0f;
    case Activation::relu2: return x > 0 ? x * x : 0.0f;
    case Activation::sigmoid: return 1.0f / (1.0f + std::exp(-x));
    default: return std::tanh(x);
  }
}

void activate_mul(Activation activation, int64_t n, float* gate, const float* up) {
  if (activation == Activation::silu) {
    isa().silu_mul(n, gate, up);
    return;
  }
  for (int64_t i = 0; i < n; i++) gate[i] = activate(activation, gate[i]) * up[i];
}

void check(const RoutingConfig& c) {
  if (c.num_keys <= 0 || c.num_keys > 65536 || c.num_experts_per_tok <= 0 ||
      c.num_experts_per_tok > c.num_keys * c.num_keys)
    throw Error("Expert routing takes " + std::to_string(c.num_experts_per_tok) + " of " + std::to_string(c.num_keys) +
                " x " + std::to_string(c.num_keys) + " product keys, which cannot be.");
}

namespace {

constexpr int64_t kBlock = 128;  // the most that `check` of a matrix lets through

// The places of the `count` largest of n values in descending order, ties by the lower place.
void best_of(const float* values, int64_t n, int64_t count, std::vector<int32_t>& order) {
  constexpr int64_t kRanked = 512;  // as many compared with each other are faster than a sort
  order.assign(static_cast<size_t>(n), 0);  // NaN has no rank of its own
  if (n <= kRanked) {
    int32_t rank[kRanked];
    isa().ranks(n, values, rank);
    for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(rank[i])] = static_cast<int32_t>(i);
    return;
  }
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [values](int32_t a, int32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  });
}

}  // namespace

void route(const RoutingConfig& c, const float* x, const float* y, int64_t* indices, float* weights) {
  thread_local std::vector<int32_t> order_x, order_y, order;
  thread_local std::vector<float> sums;
  thread_local std::vector<int64_t> pairs;
  const int64_t keys = c.num_keys, k = c.num_experts_per_tok, side = std::min(k, keys);
  best_of(x, keys, side, order_x);
  best_of(y, keys, side, order_y);
  // The pair of the i-th and the j-th best comes after (i + 1)(j + 1) - 1 others that are no smaller. Of equal
  // pairs the first in the order of both halves wins.
  sums.clear();
  pairs.clear();
  for (int64_t i = 0; i < side; i++)
    for (int64_t j = 0; j < std::min(side, k / (i + 1)); j++) {
      const int32_t first = order_x[static_cast<size_t>(i)], second = order_y[static_cast<size_t>(j)];
      sums.push_back(x[first] + y[second]);
      pairs.push_back(first * keys + second);
    }
  best_of(sums.data(), static_cast<int64_t>(sums.size()), k, order);
  for (int64_t e = 0; e < k; e++) {
    const auto pair = static_cast<size_t>(order[static_cast<size_t>(e)]);
    indices[e] = pairs[pair];
    weights[e] = sums[pair];
  }
  float sum = 0;
  const float peak = weights[0];
  for (int64_t e = 0; e < k; e++) sum += weights[e] = std::exp(weights[e] - peak);
  for (int64_t e = 0; e < k; e++) weights[e] /= sum;
  if (c.norm_topk_prob) {
    sum = 0;
    for (int64_t e = 0; e < k; e++) sum += weights[e];
    for (int64_t e = 0; e < k; e++) weights[e] /= sum;
  }
}

void expert_routing(const RoutingConfig& c, Dtype dtype, int64_t tokens, const void* logits, int64_t* indices,
                    void* weights, Threads& threads) {
  check(c);
  const int64_t keys = c.num_keys, k = c.num_experts_per_tok;
  constexpr int64_t kTokens = 8;
  auto body = [&](Team::Worker& worker) {
    worker.phase((tokens + kTokens - 1) / kTokens, [&](int64_t chunk) {
      thread_local std::vector<float> halves, mixing;
      halves.resize(static_cast<size_t>(2 * keys));
      mixing.resize(static_cast<size_t>(k));
      for (int64_t t = chunk * kTokens; t < std::min(tokens, (chunk + 1) * kTokens); t++) {
        const int64_t first = c.per_token ? 2 * t * keys : t * keys;
        const int64_t second = c.per_token ? first + keys : (tokens + t) * keys;
        read_floats(dtype, logits, first, keys, halves.data());
        read_floats(dtype, logits, second, keys, halves.data() + keys);
        route(c, halves.data(), halves.data() + keys, indices + t * k, mixing.data());
        write_floats(dtype, mixing.data(), k, weights, t * k);
      }
    });
  };
  Team::run(threads, static_cast<size_t>((tokens + kTokens - 1) / kTokens), body);
}

void row_prefetch(const Matrix& table, int64_t row, int64_t first, int64_t n) {
  const auto prefetch = [](const void* data, size_t begin, size_t end) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t at = begin / 64 * 64; at < end; at += 64) __builtin_prefetch(bytes + at);
  };
  const auto at = static_cast<size_t>(row * table.k + first), count = static_cast<size_t>(n);
  if (table.dtype == Dtype::int4)
    prefetch(table.data, at / 2, (at + count + 1) / 2);
  else
    prefetch(table.data, at * bytes_of(table.dtype), (at + count) * bytes_of(table.dtype));
  if (table.scales != nullptr) {
    const auto block = static_cast<size_t>(table.block);
    prefetch(table.scales, at / block * 2, ((at + count - 1) / block + 1) * 2);
  }
}

float row_dot(const Matrix& table, int64_t row, const float* x) {
  const Isa& loops = isa();
  const int64_t k = table.k, at = row * k;
  switch (table.dtype) {
    case Dtype::float32: return loops.dot(k, x, static_cast<const float*>(table.data) + at);
    case Dtype::float16: return loops.dot_f16(k, x, static_cast<const uint16_t*>(table.data) + at);
    case Dtype::int8: {
      float total = 0;
      const uint16_t* scales = table.scales + row * (k / table.block);
      for (int64_t b = 0; b < k / table.block; b++)
        total += half_to_float(scales[b]) *
                 loops.dot_i8(table.block, x + b * table.block, static_cast<const int8_t*>(table.data) + at + b * table.block);
      return total;
    }
    case Dtype::int4: {
      float total = 0, wide[kBlock];
      const uint16_t* scales = table.scales + row * (k / table.block);
      for (int64_t b = 0; b < k / table.block; b++) {
        loops.widen_i4(table.block, static_cast<const uint8_t*>(table.data) + (at + b * table.block) / 2, wide);
        total += half_to_float(scales[b]) * loops.dot(table.block, x + b * table.block, wide);
      }
      return total;
    }
    default: {
      thread_local std::vector<float> wide;
      wide.resize(static_cast<size_t>(k));
      read_row(table, row, wide.data());
      return loops.dot(k, x, wide.data());
    }
  }
}

void row_axpy(const Matrix& table, int64_t row, float a, int64_t first, int64_t n, float* y) {
  const Isa& loops = isa();
  const int64_t at = row * table.k + first;
  switch (table.dtype) {
    case Dtype::float32: loops.axpy(n, a, static_cast<const float*>(table.data) + at, y); return;
    case Dtype::float16: loops.axpy_f16(n, a, static_cast<const uint16_t*>(table.data) + at, y); return;
    case Dtype::int8: {
      const uint16_t* scales = table.scales + row * (table.k / table.block);
      for (int64_t i = first; i < first + n;) {  // block by block; the piece may begin and end within one
        const int64_t end = std::min(first + n, (i / table.block + 1) * table.block);
        loops.axpy_i8(end - i, a * half_to_float(scales[i / table.block]),
                      static_cast<const int8_t*>(table.data) + row * table.k + i, y + i - first);
        i = end;
      }
      return;
    }
    case Dtype::int4: {
      const uint16_t* scales = table.scales + row * (table.k / table.block);
      for (int64_t i = first; i < first + n;) {
        const int64_t end = std::min(first + n, (i / table.block + 1) * table.block);
        float wide[kBlock];
        loops.widen_i4(end - i, static_cast<const uint8_t*>(table.data) + (row * table.k + i) / 2, wide);
        loops.axpy(end - i, a * half_to_float(scales[i / table.block]), wide, y + i - first);
        i = end;
      }
      return;
    }
    default:
      for (int64_t i = 0; i < n; i++) y[i] += a * element(table, row, first + i);
  }
}

}  // namespace doge
