#include "attention_core.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace doge {

Scratch<float>& scratch(AttentionScratch which) {
  thread_local Scratch<float> memory[kAttentionScratches];
  return memory[which];
}

void round_to(Dtype dtype, int64_t n, float* x) {
  if (dtype == Dtype::float16)
    for (int64_t i = 0; i < n; i++) x[i] = half_to_float(float_to_half(x[i]));
  if (dtype == Dtype::bfloat16)
    for (int64_t i = 0; i < n; i++) x[i] = bfloat16_to_float(float_to_bfloat16(x[i]));
}

AttentionParts::AttentionParts(const AttentionConfig& c, const AttentionWeights& w)
    : config(c), q_norm(w.q_norm), k_norm(w.k_norm), dt_weight(w.dt_weight.begin(), w.dt_weight.end()),
      dt_bias(w.dt_bias.begin(), w.dt_bias.end()), A(w.A.begin(), w.A.end()) {
  if (c.num_kv_heads <= 0 || c.num_heads <= 0 || c.head_dim <= 0 || c.num_heads % c.num_kv_heads || c.head_dim % 2)
    throw Error("Attention has " + std::to_string(c.num_heads) + " heads of " + std::to_string(c.head_dim) + " over " +
                std::to_string(c.num_kv_heads) + " key-value heads, which no model has.");
  if (c.keep_window_size <= 0 || c.sliding_window < 0) throw Error("A window of attention is not positive.");
  const auto d = static_cast<size_t>(c.head_dim), g = static_cast<size_t>(c.num_kv_heads);
  if (dt_bias.empty()) dt_bias.assign(g, 0.0);
  if (q_norm.size() != d || k_norm.size() != d || dt_weight.size() != g * g * d || dt_bias.size() != g || A.size() != g)
    throw Error("A small weight of attention has another size than the heads make it.");
}

const CallRow* uniform_rows(int64_t batch, int64_t sequence, Arena& arena) {
  static_assert(sizeof(CallRow) % sizeof(float) == 0, "an arena has floats");
  auto* rows = reinterpret_cast<CallRow*>(arena.take(static_cast<int64_t>(sizeof(CallRow) / sizeof(float)) * batch));
  for (int64_t b = 0; b < batch; b++) rows[b] = {b * sequence, sequence, b};
  return rows;
}

AttentionCore::AttentionCore(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows,
                             const int64_t* bases, Arena& arena)
    : parts_(parts), io_(io), rows_(rows), loops_(isa()), heads_(parts.config.num_heads),
      kv_heads_(parts.config.num_kv_heads), d_(parts.config.head_dim), group_(heads_ / kv_heads_),
      length_(io.sequence), row_(io.cache_position || io.bounded ? io.past : io.past + io.sequence),
      window_(parts.config.keep_window_size),
      call_rows_(io.rows ? io.rows : uniform_rows(io.batch, io.sequence, arena)), bases_(bases) {
  for (int64_t b = 0; b < io.batch; b++) {
    if (base(b) < 0 || base(b) + length_ > row_)
      throw Error("The cache has " + std::to_string(row_) + " slots, and " + std::to_string(length_) +
                  " tokens do not fit in from slot " + std::to_string(base(b)) + " on.");
    most_keys_ = std::max(most_keys_, keys(b));
    blocks_ += ceil_div(keys(b), kBlock);
  }
  const int64_t sliding = parts.config.sliding_window, most = ceil_div(most_keys_, kBlock);
  limited_ = (sliding ? std::min(most_keys_, sliding) : most_keys_) > window_;
  lasts_ = reinterpret_cast<int64_t*>(arena.take(2 * pairs() * length_));
  thresholds_ = arena.take(pairs() * length_);
  weights_ = arena.take(pairs() * row_);
  if (length_ <= kSingle && most > 1 && (io.batch == 1 || most * kMostOfMany >= blocks_ * kv_heads_))
    partials_ = arena.take(pairs() * most * length_ * group_ * (d_ + 2));
}

size_t AttentionCore::width() const {
  const int64_t blocks = length_ <= kSingle ? blocks_ : ceil_div(most_keys_, kSplit);
  return static_cast<size_t>(std::max<int64_t>(2, kv_heads_ * blocks));
}

// The first position that still exists for a sliding cache, which forgets what no later query sees.
int64_t AttentionCore::start(int64_t b) const {
  const int64_t sliding = parts_.config.sliding_window;
  return sliding ? std::max<int64_t>(0, base(b) - sliding + 1) : 0;
}

// cos [d / 2] of a token's position, then sin.
void AttentionCore::read_angles(int64_t token, float* angles) const {
  const int64_t half = d_ / 2;
  read_floats(io_.dtype, io_.cos, token * half, half, angles);
  read_floats(io_.dtype, io_.sin, token * half, half, angles + half);
}

// A step's queries of one kv head, on nobody else's word.
const float* AttentionCore::new_queries(int64_t b, int64_t g, const float* angles) const {
  float* query = scratch(kQueries).get(static_cast<size_t>(group_ * d_));
  for (int64_t h = 0; h < group_; h++) {
    const float* from = rows_.query + (token(b, 0) * heads_ + g * group_ + h) * d_;
    loops_.rms_norm(from, parts_.q_norm.data(), query + h * d_, d_, parts_.config.epsilon);
    loops_.rotate(query + h * d_, angles, angles + d_ / 2, d_);
  }
  return query;
}

// One key and value into the cache; cos [d / 2], then sin.
void AttentionCore::append_key(int64_t b, int64_t g, int64_t s, const float* angles, int64_t slot) const {
  const int64_t row = token(b, s);
  float* k = rows_.key + (row * kv_heads_ + g) * d_;
  loops_.rms_norm(k, parts_.k_norm.data(), k, d_, parts_.config.epsilon);
  loops_.rotate(k, angles, angles + d_ / 2, d_);
  const int64_t at = (cache_row(b, g) * row_ + slot) * d_;
  write_floats(io_.dtype, k, d_, io_.present_key, at);
  write_floats(io_.dtype, rows_.value + (row * kv_heads_ + g) * d_, d_, io_.present_value, at);
}

const float* AttentionCore::cached(const void* cache, int64_t b, int64_t g, int64_t first, int64_t count,
                                  float* room) const {
  const int64_t at = (cache_row(b, g) * row_ + first) * d_;
  if (io_.dtype == Dtype::float32) return static_cast<const float*>(cache) + at;
  if (io_.dtype == Dtype::float16)
    loops_.widen_f16(count * d_, static_cast<const uint16_t*>(cache) + at, room);
  else
    read_floats(io_.dtype, cache, at, count * d_, room);
  return room;
}

// The weight of row b's new key, as the cache holds it.
float AttentionCore::new_weight(int64_t b, int64_t g) const {
  float* value = scratch(kValue).get(static_cast<size_t>(kv_heads_ * d_));
  std::memcpy(value, rows_.value + token(b, 0) * kv_heads_ * d_, static_cast<size_t>(kv_heads_ * d_) * 4);
  round_to(io_.dtype, kv_heads_ * d_, value);
  const auto head = static_cast<size_t>(g);
  float dt = 0;
  loops_.key_weights(1, kv_heads_, d_, value, d_, parts_.dt_weight.data() + g * kv_heads_ * d_, parts_.dt_bias[head],
                     parts_.A[head], &dt);
  round_to(io_.dtype, 1, &dt);
  return dt;
}

}  // namespace doge
