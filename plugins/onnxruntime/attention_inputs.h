// What every operator with an attention has: attributes, and the inputs and outputs of its cache.
#pragma once

#include "op.h"

namespace doge::ort {

// Attributes num_heads, num_kv_heads, keep_window_size, sliding_window, scale and epsilon. head_dim is left
// to `check_head_dim`, for it comes with the inputs.
AttentionConfig attention_config(const Node& node);

// Throws Error unless it is even and positive.
int64_t checked_head_dim(int64_t head_dim);

enum class CacheKind { growing, fixed, bounded };

struct AttentionInputs {
  Tensor attention_mask, cos, sin, past_key, past_value;
  CacheKind kind = CacheKind::growing;
  Tensor past_dt;                      // fixed, bounded
  Tensor cache_position;               // fixed
  Tensor past_position, position_ids;  // bounded
};

// The io of a call, its inputs checked against each other; no outputs yet.
AttentionIO attention_io(const AttentionConfig& config, ElementType element, int64_t batch, int64_t sequence,
                         const AttentionInputs& inputs);

// The shapes of the outputs. `keys`: those that present_dt and keep are about.
int64_t keys_in_reach(const AttentionConfig& config, const AttentionIO& io);
Shape present_shape(const AttentionConfig& config, const AttentionIO& io);
// present_dt's and present_position's, where there is a slot for each.
Shape present_numbers(const AttentionConfig& config, const AttentionIO& io);

}  // namespace doge::ort
