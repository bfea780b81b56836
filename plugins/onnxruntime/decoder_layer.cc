// doge::DecoderLayer: a whole layer, its weights packed when the kernel is made.
#include "layer_weights.h"

namespace doge::ort {

namespace {

class Layer final : public Kernel {
 public:
  explicit Layer(Node& node) : element_(node.element()) {
    std::vector<std::string> roles = layer_roles("");
    for (const char* role : {"hidden_states", "attention_mask", "cos", "sin", "past_key", "past_value", "past_dt",
                             "cache_position"})
      roles.emplace_back(role);
    node.read_roles(roles);
    find_inputs(node);
    LayerConfig config = layer_config(node);
    const LayerWeights weights = read_layer(node, "", &config);
    attention_ = config.attention;
    layer_ = std::make_unique<DecoderLayers>(config, std::vector<LayerWeights>{weights});
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
    layer_->run(&io, hidden.data, output, call);
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

  ElementType element_;
  AttentionConfig attention_;
  bool is_static_ = false;
  size_t hidden_ = 0, mask_ = 0, cos_ = 0, sin_ = 0, past_key_ = 0, past_value_ = 0, past_dt_ = 0,
         cache_position_ = 0;
  std::unique_ptr<DecoderLayers> layer_;
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
