// The operators as ONNX Runtime registers them: ports, element types, and the kernel behind a node.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "node.h"
#include "tensor.h"

namespace doge::ort {

// One run of a kernel: its inputs, its outputs, and the runtime's threads.
class Call final : public Threads {
 public:
  Call(const Runtime& runtime, KernelContext* context, size_t threads);

  Tensor input(size_t index) const;
  bool input_or_none(size_t index, Tensor* tensor) const;  // false: the node leaves it out
  // Memory of the shape given; null where the node leaves the output out.
  void* output(size_t index, const Shape& shape);

  void run(void (*task)(void* argument, size_t i), void* argument, size_t count) override;
  size_t count() const override { return threads_; }

 private:
  const Runtime& runtime_;
  const Api& api_;
  KernelContext* context_;
  size_t threads_, input_count_ = 0, output_count_ = 0;
};

// What a node does. One object serves many threads at once.
struct Kernel {
  virtual ~Kernel() = default;
  virtual void run(Call& call) const = 0;
};

// A formal input or output. `type` kElement: that of the operator's entry.
constexpr ElementType kElement = static_cast<ElementType>(-1);
struct Port {
  ElementType type;
  Characteristic characteristic = kRequired;
};

struct OpType {
  const char* name;
  std::vector<Port> inputs, outputs;
  std::unique_ptr<Kernel> (*make)(Node& node);
};

// The operators of the domain `doge`, one file each.
OpType decoder_layer();
OpType decode_tokens();
OpType lm_head();
OpType top_tokens();
OpType token_embedding();
OpType rotary_angles();
OpType dynamic_mask_attention();
OpType expert_routing();

// An operator for one element type, as the runtime wants it.
class Op : public CustomOp {
 public:
  Op(const OpType& type, ElementType element);

  const OpType& type;
  const ElementType element;
};

}  // namespace doge::ort
