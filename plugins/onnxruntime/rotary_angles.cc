// doge::RotaryAngles: cos and sin of the new tokens' positions.
#include "layer_weights.h"

namespace doge::ort {

RotaryAngles read_rotary(const Node& node) {
  RotaryConfig config;
  config.limit = node.number("limit");
  config.factor = node.number("factor");
  config.offset = node.number("offset");
  config.theta = node.number("theta");
  config.power = node.number("power");
  config.scaling = node.number("scaling");
  const Tensor frequencies = node.weight("inv_freq");
  const int64_t half = frequencies.shape.rank() == 1 ? frequencies.shape[0] : 0;
  return RotaryAngles(config, node.vector("inv_freq", {half}), node.vector_or_empty("long_inv_freq", {half}),
                      node.vector_or_empty("exponents", {half}));
}

namespace {

class Angles final : public Kernel {
 public:
  explicit Angles(Node& node) {
    node.read_roles({"position_ids", "rope_length", "inv_freq", "long_inv_freq", "exponents"});
    positions_ = node.place("position_ids");
    told_ = node.has("rope_length");
    if (told_) length_ = node.place("rope_length");
    element_ = node.output_type(0);  // no input tells it
    if (!is_float(element_)) throw Error(std::string("cos is ") + type_name(element_) + ", not float32, float16 or bfloat16.");
    angles_ = std::make_unique<RotaryAngles>(read_rotary(node));
    half_ = angles_->size();
  }

  void run(Call& call) const override {
    const Tensor positions = call.input(positions_);
    const bool rows = positions.shape.rank() == 2;
    const int64_t batch = rows ? positions.shape[0] : 0, sequence = rows ? positions.shape[1] : 0;
    positions.expect("position_ids", kInt64, {batch, sequence});
    const int64_t length = told_ ? *call.input(length_).expect("rope_length", kInt64, {}).as<int64_t>() : 0;
    const Shape shape{batch, sequence, half_};
    void *cos = call.output(0, shape), *sin = call.output(1, shape);
    if (batch * sequence == 0) return;
    if (cos == nullptr || sin == nullptr) throw Error("No output can be left out.");
    angles_->run(dtype_of(element_), batch * sequence, positions.as<int64_t>(), cos, sin, length);
  }

 private:
  ElementType element_ = kUndefined;
  bool told_ = false;
  size_t positions_ = 0, length_ = 0;
  int64_t half_ = 0;
  std::unique_ptr<RotaryAngles> angles_;
};

}  // namespace

OpType rotary_angles() {
  return {"RotaryAngles",
          {{kUndefined, kVariadic}},
          {{kUndefined}, {kUndefined}},
          [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Angles>(node); }};
}

}  // namespace doge::ort
