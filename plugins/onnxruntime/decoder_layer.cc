// doge::DecoderLayer: a whole layer, its weights packed when the kernel is made.
#include "layer_weights.h"

namespace doge::ort {

namespace {

class Layer final : public Kernel {
 public:
  explicit Layer(Node& node) : element_(node.element()) {
    std::vector<std::string> roles = layer_roles("");
    for (const char* role : {"hidden_states", "attention_mask", "cos", "sin", "past_key", "past_value", "past_dt",
                             "cache_position", "past_position", "position_ids"})
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
    inputs.kind = kind_;
    if (kind_ != CacheKind::growing) inputs.past_dt = call.input(past_dt_);
    if (kind_ == CacheKind::fixed) inputs.cache_position = call.input(cache_position_);
    if (kind_ == CacheKind::bounded) {
      inputs.past_position = call.input(past_position_);
      inputs.position_ids = call.input(position_ids_);
    }
    AttentionIO io = attention_io(attention_, element_, batch, sequence, inputs);
    void* output = call.output(0, shape);
    io.present_key = call.output(1, present_shape(attention_, io));
    io.present_value = call.output(2, present_shape(attention_, io));
    if (kind_ != CacheKind::growing) io.present_dt = call.output(3, present_numbers(attention_, io));
    if (kind_ == CacheKind::bounded)
      io.present_position = static_cast<int64_t*>(call.output(4, present_numbers(attention_, io)));
    if (batch == 0) return;
    if (output == nullptr || io.present_key == nullptr || io.present_value == nullptr ||
        (kind_ != CacheKind::growing && io.present_dt == nullptr) ||
        (kind_ == CacheKind::bounded && io.present_position == nullptr))
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
    const bool fixed = node.has("cache_position"), bounded = node.has("past_position");
    if ((fixed || bounded) != node.has("past_dt") || (fixed && bounded) || bounded != node.has("position_ids"))
      throw Error(
          "past_dt and cache_position go together, or past_dt, past_position and position_ids, and one is missing or "
          "too many.");
    if (fixed || bounded) past_dt_ = node.place("past_dt");
    if (fixed) cache_position_ = node.place("cache_position");
    if (bounded) {
      past_position_ = node.place("past_position");
      position_ids_ = node.place("position_ids");
    }
    kind_ = fixed ? CacheKind::fixed : bounded ? CacheKind::bounded : CacheKind::growing;
    const size_t outputs = fixed ? 4 : bounded ? 5 : 3;
    if (node.output_count() != outputs)
      throw Error("A layer of this cache has " + std::to_string(outputs) + " outputs, not " +
                  std::to_string(node.output_count()) + ".");
  }

  ElementType element_;
  AttentionConfig attention_;
  CacheKind kind_ = CacheKind::growing;
  size_t hidden_ = 0, mask_ = 0, cos_ = 0, sin_ = 0, past_key_ = 0, past_value_ = 0, past_dt_ = 0,
         cache_position_ = 0, past_position_ = 0, position_ids_ = 0;
  std::unique_ptr<DecoderLayers> layer_;
};

}  // namespace

OpType decoder_layer() {
  const Port element{kElement};
  return {"DecoderLayer",
          {element, {kUndefined, kVariadic}},
          {element, element, element, {kElement, kOptional}, {kInt64, kOptional}},
          [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Layer>(node); }};
}

}  // namespace doge::ort
