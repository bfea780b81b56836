#include "attention_inputs.h"

#include <algorithm>
#include <limits>

namespace doge::ort {

namespace {

constexpr int64_t kMany = int64_t{1} << 40;  // beyond any length, and far from overflow

}  // namespace

AttentionConfig attention_config(const Node& node) {
  AttentionConfig config;
  config.num_heads = node.integer("num_heads", 1, 1 << 20);
  config.num_kv_heads = node.integer("num_kv_heads", 1, config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0)
    throw Error(std::to_string(config.num_heads) + " heads cannot share " +
                std::to_string(config.num_kv_heads) + " key heads.");
  config.keep_window_size = node.integer("keep_window_size", 1, std::numeric_limits<int64_t>::max());
  config.keep_window_size = std::min(config.keep_window_size, kMany);
  config.sliding_window = node.integer("sliding_window", 0, std::numeric_limits<int64_t>::max());
  config.sliding_window = std::min(config.sliding_window, kMany);
  config.scale = node.number("scale");
  config.epsilon = node.number("epsilon");
  if (config.epsilon < 0) throw Error("The attribute epsilon is negative.");
  return config;
}

int64_t checked_head_dim(int64_t head_dim) {
  if (head_dim < 2 || head_dim % 2 != 0)
    throw Error("A head of " + std::to_string(head_dim) + " numbers cannot be rotated in pairs.");
  return head_dim;
}

AttentionIO attention_io(const AttentionConfig& config, ElementType element, int64_t batch, int64_t sequence,
                         const AttentionInputs& inputs) {
  if (sequence < 1) throw Error("There are no new tokens.");
  const Shape& cache = inputs.past_key.shape;
  const int64_t past = cache.rank() == 4 ? cache[2] : 0;
  const Shape expected{batch, config.num_kv_heads, past, config.head_dim};
  inputs.past_key.expect("past_key", element, expected);
  inputs.past_value.expect("past_value", element, expected);
  const Shape angles{batch, sequence, config.head_dim / 2};
  inputs.cos.expect("cos", element, angles);
  inputs.sin.expect("sin", element, angles);
  const int64_t slots = inputs.kind == CacheKind::fixed     ? past
                        : inputs.kind == CacheKind::bounded ? sequence
                                                            : past + sequence;
  inputs.attention_mask.expect("attention_mask", kInt64, {batch, slots});

  AttentionIO io;
  io.dtype = dtype_of(element);
  io.batch = batch;
  io.sequence = sequence;
  io.past = past;
  io.mask = inputs.attention_mask.as<int64_t>();
  io.cos = inputs.cos.data;
  io.sin = inputs.sin.data;
  io.past_key = inputs.past_key.data;
  io.past_value = inputs.past_value.data;
  const Shape numbers{batch, config.num_kv_heads, past};
  if (inputs.kind == CacheKind::bounded) {
    if (config.sliding_window > 0) throw Error("A bounded cache and a sliding window do not go together.");
    io.bounded = true;
    io.past_dt = inputs.past_dt.expect("past_dt", element, numbers).data;
    io.past_position = inputs.past_position.expect("past_position", kInt64, numbers).as<int64_t>();
    io.positions = inputs.position_ids.expect("position_ids", kInt64, {batch, sequence}).as<int64_t>();
    io.slots = std::min(past + sequence, config.keep_window_size);
    for (int64_t i = 0; i < batch * sequence; ++i)
      if (io.positions[i] < 0)
        throw Error("position_ids has " + std::to_string(io.positions[i]) + ", and positions are not negative.");
  }
  if (inputs.kind == CacheKind::fixed) {
    inputs.past_dt.expect("past_dt", element, numbers);
    inputs.cache_position.expect("cache_position", kInt64, {batch});
    io.past_dt = inputs.past_dt.data;
    io.cache_position = inputs.cache_position.as<int64_t>();
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t position = io.cache_position[row];
      if (position < 0 || position > past - sequence)
        throw Error("cache_position is " + std::to_string(position) + ": " + std::to_string(sequence) +
                    " tokens from there on do not fit in a cache of " + std::to_string(past) + " slots.");
    }
  }
  return io;
}

int64_t keys_in_reach(const AttentionConfig& config, const AttentionIO& io) {
  if (io.cache_position != nullptr) return io.past;
  // What no later query can see is forgotten: the torch implementation says the same.
  const int64_t kept =
      config.sliding_window > 0 ? std::min(io.past, config.sliding_window - 1) : io.past;
  return kept + io.sequence;
}

Shape present_shape(const AttentionConfig& config, const AttentionIO& io) {
  if (io.bounded) return {io.batch, config.num_kv_heads, io.slots, config.head_dim};
  const int64_t slots = io.cache_position != nullptr ? io.past : io.past + io.sequence;
  return {io.batch, config.num_kv_heads, slots, config.head_dim};
}

Shape present_numbers(const AttentionConfig& config, const AttentionIO& io) {
  return {io.batch, config.num_kv_heads, io.bounded ? io.slots : io.past};
}

}  // namespace doge::ort
