// The kernels of Doge's operators on a CPU: what a runtime's glue calls. No type of any runtime is in here.
//
// One call is one operator. It runs on the threads that the caller lends through `Threads`, gives the same
// result whatever their number, and keeps no state between calls: one object serves many threads at once.
// A wrong argument throws doge::Error with one sentence; nothing has been written then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace doge {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ONNX element types that the kernels know. int4: two's complement nibbles, the lower one first.
enum class Dtype { none, float32, float16, bfloat16, int8, int4 };

// Threads of somebody else's pool. `run` calls task(argument, i) for every i < count, in any order, on as
// many threads at once as it likes (one is enough), and returns when all are done.
struct Threads {
  virtual void run(void (*task)(void* argument, size_t i), void* argument, size_t count) = 0;
  virtual size_t count() const = 0;  // how many threads may work at once; a guess will do
 protected:
  ~Threads() = default;
};

// A weight matrix as the file stores it: [n, k] row-major, n outputs of k inputs each. int8 and int4 have
// float16 scales [n, k / block], and w = scale * q; block divides k, and is a multiple of 4 (int8, at most
// 128) or 8 (int4, at most 128).
struct Matrix {
  Dtype dtype = Dtype::none;  // none: the matrix is not there
  int64_t n = 0, k = 0;
  const void* data = nullptr;
  const uint16_t* scales = nullptr;
  int64_t block = 0;
};

using Vector = std::vector<float>;  // a small weight, widened; empty: not there

struct Linear {
  Matrix weight;
  Vector bias;
};

enum class Activation { silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh };
// By transformers' `hidden_act` names; throws Error for an unknown one.
Activation activation_from_name(const std::string& name);

struct AttentionConfig {
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t keep_window_size = 0;
  int64_t sliding_window = 0;  // 0: none
  float scale = 1.0f, epsilon = 1e-6f;
};

struct AttentionWeights {
  Vector q_norm, k_norm;         // [head_dim]
  Vector dt_weight;              // [kv_heads, kv_heads * head_dim]
  Vector dt_bias, A;             // [kv_heads]
};

// How many slots of one head of a bounded cache are in use: the index of its first negative position.
int64_t used_slots(const int64_t* positions, int64_t slots);

// What an attention call is given beside its queries, keys and values. Element type of the floating point
// tensors: `dtype` (float32, float16 or bfloat16).
//
// Growing cache: `cache_position` is null, past_* have `past` positions, present_* past + sequence, and
// `mask` has past + sequence entries a row. Static cache: past_* and present_* have `past` slots, may be
// the same memory, and `mask` has `past` entries a row. With `bounded`, past_* have `past` slots and present_*
// `slots`, and may be the same memory; `mask` and `positions` are those of the new tokens.
// doge_export/graph/operators/bounded_mask_attention.py says what it holds.
//
// Of a ragged call the rows lie one after another: row b has the `rows[b].count` tokens from `rows[b].first` on, of
// `tokens` in all, and its cache is number `rows[b].slot` of the pool that past_* and present_* are, the same memory.
// It is static or bounded, and has no mask; what is [batch, sequence, ...] below is [tokens, ...] then.
struct CallRow {
  int64_t first = 0, count = 0, slot = 0;
};
struct AttentionIO {
  Dtype dtype = Dtype::float32;
  int64_t batch = 0, sequence = 0, past = 0;
  const CallRow* rows = nullptr;            // ragged: [batch]
  int64_t tokens() const { return rows ? rows[batch - 1].first + rows[batch - 1].count : batch * sequence; }
  const int64_t* mask = nullptr;            // [batch, past + sequence], [batch, slots] or [batch, sequence]
  const void *cos = nullptr, *sin = nullptr;  // [batch, sequence, head_dim / 2]
  const void *past_key = nullptr, *past_value = nullptr;  // [batch, kv_heads, past, head_dim]
  const void* past_dt = nullptr;            // static, bounded: [batch, kv_heads, past]
  const int64_t* cache_position = nullptr;  // static: [batch]
  bool bounded = false;
  int64_t slots = 0;                        // bounded: of present_*
  const int64_t* positions = nullptr;       // bounded: [batch, sequence]
  const int64_t* past_position = nullptr;   // bounded: [batch, kv_heads, past]; -1: the slot is empty
  int64_t* present_position = nullptr;      // bounded: [batch, kv_heads, slots]
  void *present_key = nullptr, *present_value = nullptr;
  void* present_dt = nullptr;               // growing: null, or [batch, kv_heads, keys in reach]
  bool* keep = nullptr;                     // null, or [batch, kv_heads, sequence, keys in reach]
};

// The operator doge::DynamicMaskAttention; its specification is doge_export/graph/operators/dynamic_mask_attention.py.
// query [batch, sequence, heads * head_dim], key and value [batch, sequence, kv_heads * head_dim], output
// as query, all of io.dtype.
void dynamic_mask_attention(const AttentionConfig& config, const AttentionWeights& weights,
                            const AttentionIO& io, const void* query, const void* key, const void* value,
                            void* output, Threads& threads);

struct RoutingConfig {
  int64_t num_keys = 0, num_experts_per_tok = 0;
  bool per_token = false, norm_topk_prob = false;
};

// The operator doge::ExpertRouting: router_logits [tokens, 2 * num_keys] of `dtype` -> indices
// [tokens, num_experts_per_tok] and weights of `dtype`. `tokens` counts the whole batch.
void expert_routing(const RoutingConfig& config, Dtype dtype, int64_t tokens, const void* router_logits,
                    int64_t* indices, void* weights, Threads& threads);

// A whole layer. Its weights are packed when DecoderLayers is made.
struct LayerWeights {
  Vector input_layernorm, post_attention_layernorm;   // [hidden]
  Vector input_residual, post_attention_residual;     // [hidden]
  Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
  AttentionWeights attention;
  Matrix router_gate;             // experts: [2 * num_keys, hidden], float
  Matrix down_embed, up_embed;    // experts: [num_experts, hidden]; read in place, so they must outlive it
};

struct LayerConfig {
  AttentionConfig attention;
  RoutingConfig routing;          // num_keys 0: no experts
  Activation activation = Activation::silu;
  float epsilon = 1e-6f;
};

// The operators doge::DecoderLayer and doge::DecodeTokens: layers one after the other, of one shape.
class DecoderLayers {
 public:
  DecoderLayers(const LayerConfig& config, const std::vector<LayerWeights>& weights);
  ~DecoderLayers();
  size_t count() const;
  int64_t hidden_size() const;
  // hidden and output: [batch, sequence, hidden] of io's dtype. io: one a layer, alike but for the caches.
  void run(const AttentionIO* io, const void* hidden, void* output, Threads& threads) const;

  struct Parts;
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

// The operators doge::LMHead and doge::TopTokens: final norm, then the head.
class Head {
 public:
  // With `only_top_tokens`, `logits` must not be called, a float weight is read in place (it must outlive the
  // head), and top_tokens screens it with an int8 copy: only tokens that the error bound of the copy cannot
  // exclude are computed, so the result is that of the float weight at a quarter of its bytes.
  Head(const Vector& norm, float epsilon, const Matrix& weight, bool only_top_tokens = false);
  ~Head();
  int64_t hidden_size() const;
  int64_t vocab_size() const;
  // hidden [rows, hidden] -> logits [rows, vocab], both of `dtype`.
  void logits(Dtype dtype, int64_t rows, const void* hidden, void* logits, Threads& threads) const;
  // The `count` best tokens of the last position of each row, or of the tokens whose numbers are in `wanted` [batch],
  // best first, ties by the lower id. hidden [batch, sequence, hidden] of `dtype` -> ids, values [batch, count].
  void top_tokens(Dtype dtype, int64_t batch, int64_t sequence, const void* hidden, int64_t count,
                  int64_t* ids, float* values, Threads& threads, const int64_t* wanted = nullptr) const;

  struct Parts;
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

class RotaryAngles;

// How the tokens of one row are drawn: docs/reference/operators.md has the mathematics. What overflows float32 on the
// way counts as infinite.
struct Draw {
  float temperature = 0;  // 0: the best token is taken, and top_k, top_p and min_p do nothing
  int64_t top_k = 0;      // 0: off
  double top_p = 1, min_p = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0, row = 0;
  const float* bias = nullptr;         // null, or [vocab]: added to the logits; -inf forbids
  const uint64_t* allowed = nullptr;   // null, or a bit for each token
  std::vector<int64_t> seen;           // for the penalty
};

// The operator doge::DecodeTokens: embedding, angles, layers and head for `steps` tokens, each the best one after the
// last. The first step takes ids and positions [batch, sequence]; every other takes one token a row, one position
// and place on, and finds its past in present_*. io: one a layer, alike but for the caches, without cos, sin and
// positions; there must be places for all. rope_length: as of RotaryAngles. token_ids, token_logits: [batch, steps, count].
//
// A ragged call has io.rows, and ids and positions [tokens]; every step after the first takes one token of each row.
// `wanted`, of one step: the tokens [wanted_count] whose best are looked for in the place of each row's last.
// rope_lengths [rows], or null: of each row.
//
// With `draws`, one a row or a wanted token, the next token is drawn, and count is 1; token_logits are those of the
// drawn tokens as the head gave them, -inf where no token was left or no logit was a number.
struct DecodeCall {
  std::vector<AttentionIO> io;
  const int64_t *ids = nullptr, *positions = nullptr;
  int64_t steps = 1, count = 1, rope_length = 0;
  const int64_t *wanted = nullptr, *rope_lengths = nullptr;
  int64_t wanted_count = 0;
  int64_t* token_ids = nullptr;
  float* token_logits = nullptr;
  std::vector<Draw> draws;
};
void decode_tokens(const Matrix& table, const RotaryAngles& angles, const DecoderLayers& layers, const Head& head,
                   const DecodeCall& call, Threads& threads);

// The operator doge::TokenEmbedding: rows of the table, dequantized. ids [tokens] -> output [tokens, k] of
// `dtype`. Throws Error for an id outside the table.
void token_embedding(const Matrix& table, Dtype dtype, int64_t tokens, const int64_t* ids, void* output);

// The operator doge::RotaryAngles. cos and sin are multiplied with `scaling`. Where the largest position of a
// call, or of the text of which it is a part, is `limit` or more (0: no limit) it has other frequencies: the long ones, or, where there are exponents e
// instead, (theta * (factor * length / limit - offset)^power)^-e.
struct RotaryConfig {
  float limit = 0, factor = 0, offset = 0, theta = 0, power = 0, scaling = 1;
};

// The one after `position`; the last that an integer holds has none, and stays.
inline int64_t next_position(int64_t position) {
  return position < std::numeric_limits<int64_t>::max() ? position + 1 : position;
}

class RotaryAngles {
 public:
  // Each of the vectors [head_dim / 2], or empty.
  RotaryAngles(const RotaryConfig& config, Vector frequencies, Vector long_frequencies, Vector exponents);
  int64_t size() const { return static_cast<int64_t>(frequencies_.size()); }
  // positions [tokens] -> cos and sin [tokens, head_dim / 2] of `dtype`. `tokens` are those of a whole call;
  // `length`: of the text, where it reaches beyond them.
  void run(Dtype dtype, int64_t tokens, const int64_t* positions, void* cos, void* sin, int64_t length = 0) const;

 private:
  RotaryConfig config_;
  Vector frequencies_, long_, exponents_;
};

// The instruction set that the kernels use on this processor: "amx", "avx512", "avx2" or "generic"; on ARM "i8mm",
// "dotprod", "neon" or "generic".
const char* instruction_set();

}  // namespace doge
