// doge::ExpertRouting, and the attributes that it shares with doge::DecoderLayer.
#include "expert_routing.h"

#include <algorithm>

#include "op.h"

namespace doge::ort {

RoutingConfig routing_config(const Node& node, int64_t fewest_keys) {
  RoutingConfig config;
  config.num_keys = node.integer("num_keys", fewest_keys, 1 << 20);
  const int64_t pairs = config.num_keys * config.num_keys;
  config.num_experts_per_tok = node.integer("num_experts_per_tok", std::min<int64_t>(1, pairs), pairs);
  config.per_token = node.flag("per_token");
  config.norm_topk_prob = node.flag("norm_topk_prob");
  return config;
}

namespace {

class Routing final : public Kernel {
 public:
  explicit Routing(const Node& node) : config_(routing_config(node, 1)), element_(node.element()) {}

  void run(Call& call) const override {
    const Tensor logits = call.input(0);
    const bool rows = logits.shape.rank() == 3;
    const int64_t batch = rows ? logits.shape[0] : 0, sequence = rows ? logits.shape[1] : 0;
    logits.expect("router_logits", element_, {batch, sequence, 2 * config_.num_keys});
    const int64_t tokens = batch * sequence;
    auto* indices = static_cast<int64_t*>(call.output(0, {tokens, config_.num_experts_per_tok}));
    void* weights = call.output(1, {tokens, config_.num_experts_per_tok});
    if (tokens == 0) return;
    if (indices == nullptr || weights == nullptr) throw Error("No output can be left out.");
    doge::expert_routing(config_, dtype_of(element_), tokens, logits.data, indices, weights, call);
  }

 private:
  RoutingConfig config_;
  ElementType element_;
};

}  // namespace

OpType expert_routing() {
  return {"ExpertRouting", {{kElement}}, {{kInt64}, {kElement}}, [](Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<Routing>(node);
          }};
}

}  // namespace doge::ort
