// doge::DynamicMaskAttention. Its weights may be constant or computed.
#include <vector>

#include "attention_inputs.h"

namespace doge::ort {

namespace {

enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kMask,
  kCos,
  kSin,
  kQNorm,
  kKNorm,
  kDtWeight,
  kDtBias,
  kA,
  kPastDt,
  kCachePosition,
};

Vector weight(const Call& call, size_t index, const char* name, ElementType element, const Shape& shape) {
  return widened(call.input(index).expect(name, element, shape));
}

class Attention final : public Kernel {
 public:
  explicit Attention(const Node& node) : config_(attention_config(node)), element_(node.element()) {}

  void run(Call& call) const override {
    AttentionInputs inputs;
    inputs.past_key = call.input(kPastKey);
    inputs.past_value = call.input(kPastValue);
    inputs.attention_mask = call.input(kMask);
    inputs.cos = call.input(kCos);
    inputs.sin = call.input(kSin);
    const bool fixed = call.input_or_none(kCachePosition, &inputs.cache_position);
    inputs.kind = fixed ? CacheKind::fixed : CacheKind::growing;
    if (call.input_or_none(kPastDt, &inputs.past_dt) != fixed)
      throw Error("past_dt and cache_position go together, and one of them is missing.");

    const Tensor query = call.input(kQuery), key = call.input(kKey), value = call.input(kValue);
    AttentionConfig config = config_;
    config.head_dim = checked_head_dim(inputs.past_key.shape.rank() == 4 ? inputs.past_key.shape[3] : 0);
    const int64_t batch = query.shape.rank() == 3 ? query.shape[0] : 0;
    const int64_t sequence = query.shape.rank() == 3 ? query.shape[1] : 0;
    const int64_t kv_size = config.num_kv_heads * config.head_dim;
    const Shape query_shape{batch, sequence, config.num_heads * config.head_dim};
    query.expect("query", element_, query_shape);
    key.expect("key", element_, {batch, sequence, kv_size});
    value.expect("value", element_, {batch, sequence, kv_size});
    AttentionIO io = attention_io(config, element_, batch, sequence, inputs);

    AttentionWeights weights;
    weights.q_norm = weight(call, kQNorm, "q_norm", element_, {config.head_dim});
    weights.k_norm = weight(call, kKNorm, "k_norm", element_, {config.head_dim});
    weights.dt_weight = weight(call, kDtWeight, "dt_weight", element_, {config.num_kv_heads, kv_size});
    weights.dt_bias = weight(call, kDtBias, "dt_bias", element_, {config.num_kv_heads});
    weights.A = weight(call, kA, "A", element_, {config.num_kv_heads});

    void* output = call.output(0, query_shape);
    const int64_t keys = keys_in_reach(config, io);
    io.present_key = call.output(1, present_shape(config, io));
    io.present_value = call.output(2, present_shape(config, io));
    io.present_dt = call.output(3, {batch, config.num_kv_heads, keys});
    io.keep = static_cast<bool*>(call.output(4, {batch, config.num_kv_heads, sequence, keys}));
    if (output == nullptr || io.present_key == nullptr || io.present_value == nullptr) {
      if (batch == 0) return;
      throw Error("The first three outputs cannot be left out.");
    }
    if (batch == 0) return;
    std::vector<unsigned char> unwanted;  // a static cache's dt is written even where nobody reads it
    if (io.cache_position != nullptr && io.present_dt == nullptr) {
      unwanted.resize(static_cast<size_t>(batch * config.num_kv_heads * keys) * sizeof(float));
      io.present_dt = unwanted.data();
    }
    doge::dynamic_mask_attention(config, weights, io, query.data, key.data, value.data, output, call);
  }

 private:
  AttentionConfig config_;
  ElementType element_;
};

}  // namespace

OpType dynamic_mask_attention() {
  const Port element{kElement}, optional{kElement, kOptional};
  OpType type{"DynamicMaskAttention", std::vector<Port>(15, element), {}, nullptr};
  type.inputs[kMask] = {kInt64};
  type.inputs[kPastDt] = optional;
  type.inputs[kCachePosition] = {kInt64, kOptional};
  type.outputs = {element, element, element, optional, {kBool, kOptional}};
  type.make = [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Attention>(node); };
  return type;
}

}  // namespace doge::ort
