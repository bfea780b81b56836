// doge::DecoderLayer: a whole layer, its weights packed when the kernel is made.
#include "attention_inputs.h"
#include "expert_routing.h"

namespace doge::ort {

namespace {

class Layer final : public Kernel {
 public:
  explicit Layer(Node& node) : element_(node.element()) {
    node.read_roles({
        "hidden_states",     "attention_mask",           "cos",
        "sin",               "past_key",                 "past_value",
        "past_dt",           "cache_position",           "input_layernorm",
        "q_proj",            "q_proj.scale",             "q_proj.bias",
        "k_proj",            "k_proj.scale",             "k_proj.bias",
        "v_proj",            "v_proj.scale",             "v_proj.bias",
        "q_norm",            "k_norm",                   "dt_proj",
        "dt_proj.bias",      "A",                        "o_proj",
        "o_proj.scale",      "o_proj.bias",              "input_residual",
        "gate_proj",         "gate_proj.scale",          "gate_proj.bias",
        "up_proj",           "up_proj.scale",            "up_proj.bias",
        "down_proj",         "down_proj.scale",          "down_proj.bias",
        "router_gate",       "post_attention_layernorm", "post_attention_residual",
        "down_embed",        "down_embed.scale",         "up_embed",
        "up_embed.scale",
    });
    find_inputs(node);
    LayerConfig config;
    config.attention = attention_config(node);
    config.epsilon = config.attention.epsilon;
    config.activation = activation_from_name(node.text("activation"));
    config.routing = routing_config(node, 0);
    const LayerWeights weights = read_weights(node, &config);
    attention_ = config.attention;
    layer_ = std::make_unique<DecoderLayer>(config, weights);
  }

  void run(Call& call) const override {
    const Tensor hidden = call.input(hidden_);
    const bool rows = hidden.shape.rank() == 3;
    const int64_t batch = rows ? hidden.shape[0] : 0, sequence = rows ? hidden.shape[1] : 0;
    const Shape shape{batch, sequence, layer_->hidden_size()};
    hidden.expect("hidden_states", element_, shape);
    AttentionInputs inputs;
    inputs.attention_mask = call.input(mask_);
    inputs.cos = call.input(cos_);
    inputs.sin = call.input(sin_);
    inputs.past_key = call.input(past_key_);
    inputs.past_value = call.input(past_value_);
    inputs.is_static = is_static_;
    if (is_static_) {
      inputs.past_dt = call.input(past_dt_);
      inputs.cache_position = call.input(cache_position_);
    }
    AttentionIO io = attention_io(attention_, element_, batch, sequence, inputs);
    void* output = call.output(0, shape);
    io.present_key = call.output(1, present_shape(attention_, io));
    io.present_value = call.output(2, present_shape(attention_, io));
    if (is_static_) io.present_dt = call.output(3, {batch, attention_.num_kv_heads, io.past});
    if (batch == 0) return;
    if (output == nullptr || io.present_key == nullptr || io.present_value == nullptr ||
        (is_static_ && io.present_dt == nullptr))
      throw Error("No output can be left out.");
    layer_->run(io, hidden.data, output, call);
  }

 private:
  void find_inputs(const Node& node) {
    hidden_ = node.place("hidden_states");
    // Its type is the one that says which of the entries of this operator a node gets.
    if (hidden_ != 0) throw Error("The first input must be hidden_states.");
    mask_ = node.place("attention_mask");
    cos_ = node.place("cos");
    sin_ = node.place("sin");
    past_key_ = node.place("past_key");
    past_value_ = node.place("past_value");
    is_static_ = node.has("cache_position");
    if (is_static_ != node.has("past_dt"))
      throw Error("past_dt and cache_position go together, and one of them is missing.");
    if (is_static_) {
      past_dt_ = node.place("past_dt");
      cache_position_ = node.place("cache_position");
    }
    const size_t outputs = is_static_ ? 4 : 3;
    if (node.output_count() != outputs)
      throw Error("A layer of this cache has " + std::to_string(outputs) + " outputs, not " +
                  std::to_string(node.output_count()) + ".");
  }

  // The sizes that no attribute tells are those of the norms and of the projections themselves.
  static LayerWeights read_weights(const Node& node, LayerConfig* config) {
    AttentionConfig& attention = config->attention;
    LayerWeights weights;
    const int64_t hidden = length(node, "input_layernorm");
    attention.head_dim = checked_head_dim(length(node, "q_norm"));
    const int64_t q_size = attention.num_heads * attention.head_dim;
    const int64_t kv_heads = attention.num_kv_heads, kv_size = kv_heads * attention.head_dim;

    weights.input_layernorm = node.vector("input_layernorm", {hidden});
    weights.post_attention_layernorm = node.vector("post_attention_layernorm", {hidden});
    weights.input_residual = node.vector("input_residual", {hidden});
    weights.post_attention_residual = node.vector("post_attention_residual", {hidden});
    weights.q_proj = node.linear("q_proj", q_size, hidden);
    weights.k_proj = node.linear("k_proj", kv_size, hidden);
    weights.v_proj = node.linear("v_proj", kv_size, hidden);
    weights.o_proj = node.linear("o_proj", hidden, q_size);
    weights.attention.q_norm = node.vector("q_norm", {attention.head_dim});
    weights.attention.k_norm = node.vector("k_norm", {attention.head_dim});
    weights.attention.dt_weight = node.vector("dt_proj", {kv_heads, kv_size});
    weights.attention.dt_bias = node.vector_or_empty("dt_proj.bias", {kv_heads});
    if (weights.attention.dt_bias.empty()) weights.attention.dt_bias.assign(static_cast<size_t>(kv_heads), 0);
    weights.attention.A = node.vector("A", {kv_heads});
    weights.gate_proj = node.linear("gate_proj", 0, hidden);
    const int64_t intermediate = weights.gate_proj.weight.n;
    weights.up_proj = node.linear("up_proj", intermediate, hidden);
    weights.down_proj = node.linear("down_proj", hidden, intermediate);

    const int64_t keys = config->routing.num_keys;
    for (const char* role : {"router_gate", "down_embed", "up_embed"})
      if (node.has(role) != (keys > 0))
        throw Error(std::string("num_keys is ") + std::to_string(keys) + ", and " + role +
                    (keys > 0 ? " is missing." : " is there."));
    if (keys > 0) {
      weights.router_gate = node.matrix("router_gate", 2 * keys, hidden);
      weights.down_embed = node.matrix("down_embed", 0, hidden);
      const int64_t experts = weights.down_embed.n;
      if (experts < keys * keys)
        throw Error("down_embed has " + std::to_string(experts) + " experts, and the router chooses of " +
                    std::to_string(keys * keys) + ".");
      weights.up_embed = node.matrix("up_embed", experts, hidden);
    }
    return weights;
  }

  static int64_t length(const Node& node, const char* role) {
    const Tensor tensor = node.weight(role);
    if (tensor.shape.rank() != 1 || tensor.shape[0] < 1)
      throw Error(std::string(role) + " has the shape " + tensor.shape.text() + ".");
    return tensor.shape[0];
  }

  ElementType element_;
  AttentionConfig attention_;
  bool is_static_ = false;
  size_t hidden_ = 0, mask_ = 0, cos_ = 0, sin_ = 0, past_key_ = 0, past_value_ = 0, past_dt_ = 0,
         cache_position_ = 0;
  std::unique_ptr<DecoderLayer> layer_;
};

}  // namespace

OpType decoder_layer() {
  const Port element{kElement};
  return {"DecoderLayer",
          {element, {kUndefined, kVariadic}},
          {element, element, element, {kElement, kOptional}},
          [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Layer>(node); }};
}

}  // namespace doge::ort
