// doge::LMHead and doge::TopTokens: the final norm and the head, with all logits or the best tokens.
#include "op.h"

namespace doge::ort {

namespace {

class HeadKernel : public Kernel {
 public:
  HeadKernel(Node& node, bool only_top_tokens) : element_(node.element()) {
    node.read_roles({"hidden_states", "norm", "lm_head", "lm_head.scale"});
    // Its type is the one that says which of the entries of this operator a node gets.
    if (node.place("hidden_states") != 0) throw Error("The first input must be hidden_states.");
    const float epsilon = node.number("epsilon");
    if (epsilon < 0) throw Error("The attribute epsilon is negative.");
    const Tensor norm = node.weight("norm");
    const int64_t hidden = norm.shape.rank() == 1 ? norm.shape[0] : 0;
    if (hidden < 1) throw Error("norm has the shape " + norm.shape.text() + ".");
    head_ = std::make_unique<Head>(node.vector("norm", {hidden}), epsilon, node.matrix("lm_head", 0, hidden),
                                   only_top_tokens);
  }

 protected:
  // [batch, sequence, hidden], checked.
  Tensor hidden(const Call& call) const {
    const Tensor hidden = call.input(0);
    const bool rows = hidden.shape.rank() == 3;
    return hidden.expect("hidden_states", element_,
                         {rows ? hidden.shape[0] : 0, rows ? hidden.shape[1] : 0, head_->hidden_size()});
  }

  ElementType element_;
  std::unique_ptr<Head> head_;
};

class AllLogits final : public HeadKernel {
 public:
  explicit AllLogits(Node& node) : HeadKernel(node, false) {}

  void run(Call& call) const override {
    const Tensor states = hidden(call);
    const int64_t batch = states.shape[0], sequence = states.shape[1];
    void* logits = call.output(0, {batch, sequence, head_->vocab_size()});
    if (logits == nullptr || batch * sequence == 0) return;
    head_->logits(dtype_of(element_), batch * sequence, states.data, logits, call);
  }
};

class BestTokens final : public HeadKernel {
 public:
  explicit BestTokens(Node& node)
      : HeadKernel(node, true), count_(node.integer("count", 1, head_->vocab_size())) {}

  void run(Call& call) const override {
    const Tensor states = hidden(call);
    const int64_t batch = states.shape[0], sequence = states.shape[1];
    if (sequence < 1) throw Error("There are no new tokens.");
    auto* ids = static_cast<int64_t*>(call.output(0, {batch, count_}));
    auto* values = static_cast<float*>(call.output(1, {batch, count_}));
    if (batch == 0) return;
    if (ids == nullptr || values == nullptr) throw Error("No output can be left out.");
    head_->top_tokens(dtype_of(element_), batch, sequence, states.data, count_, ids, values, call);
  }

 private:
  int64_t count_;
};

}  // namespace

OpType lm_head() {
  return {"LMHead", {{kElement}, {kUndefined, kVariadic}}, {{kElement}}, [](Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<AllLogits>(node);
          }};
}

OpType top_tokens() {
  return {"TopTokens",
          {{kElement}, {kUndefined, kVariadic}},
          {{kInt64}, {kFloat}},
          [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<BestTokens>(node); }};
}

}  // namespace doge::ort
