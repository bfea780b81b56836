#include "op.h"

#include <atomic>
#include <exception>
#include <string>

namespace doge::ort {

namespace {

// What the runtime holds for a node.
struct Instance {
  Runtime runtime;
  const char* name;
  size_t threads = 1;
  std::unique_ptr<Kernel> kernel;
};

const Op& op_of(const CustomOp* op) { return *static_cast<const Op*>(op); }

ElementType resolved(ElementType type, const CustomOp* op) {
  return type == kElement ? op_of(op).element : type;
}

// An Error of `body` with the operator's name before it.
template <typename Body>
void named(const char* name, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    throw Error(std::string("doge::") + name + ": " + error.what());
  }
}

Status* create(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  return guarded(*api, [&] {
    const Op& self = op_of(op);
    named(self.type.name, [&] {
      auto instance = std::make_unique<Instance>();
      instance->runtime = runtime_of(api);
      instance->name = self.type.name;
      Node node(instance->runtime, info, self.element);
      instance->threads = node.threads();
      instance->kernel = self.type.make(node);
      *kernel = instance.release();
    });
  });
}

Status* compute(void* kernel, KernelContext* context) {
  const Instance& instance = *static_cast<const Instance*>(kernel);
  return guarded(*instance.runtime.api, [&] {
    named(instance.name, [&] {
      Call call(instance.runtime, context, instance.threads);
      instance.kernel->run(call);
    });
  });
}

// A task of ours in the runtime's pool: what it throws is kept until the caller's thread is back.
struct Guarded {
  void (*task)(void*, size_t);
  void* argument;
  std::atomic<int> failed{0};  // a bool would take a library of its own on RISC-V
  std::exception_ptr error;

  static void run(void* self, size_t i) {
    auto& guard = *static_cast<Guarded*>(self);
    try {
      guard.task(guard.argument, i);
    } catch (...) {
      if (!guard.failed.exchange(1)) guard.error = std::current_exception();
    }
  }
};

}  // namespace

Call::Call(const Runtime& runtime, KernelContext* context, size_t threads)
    : runtime_(runtime), api_(*runtime.api), context_(context), threads_(threads) {
  check(api_, api_.KernelContext_GetInputCount(context_, &input_count_));
  check(api_, api_.KernelContext_GetOutputCount(context_, &output_count_));
}

Tensor Call::input(size_t index) const {
  Tensor tensor;
  if (!input_or_none(index, &tensor)) throw Error("Input " + std::to_string(index) + " is missing.");
  return tensor;
}

bool Call::input_or_none(size_t index, Tensor* tensor) const {
  if (index >= input_count_) return false;
  const Value* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) return false;
  *tensor = tensor_of(runtime_, value);
  return true;
}

void* Call::output(size_t index, const Shape& shape) {
  if (index >= output_count_) return nullptr;
  Value* value = nullptr;
  void* data = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.rank(), &value));
  if (value != nullptr) check(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

void Call::run(void (*task)(void* argument, size_t i), void* argument, size_t count) {
  if (count == 1 || threads_ == 1) {
    for (size_t i = 0; i < count; ++i) task(argument, i);
    return;
  }
  Guarded guard{task, argument, {}, {}};
  // 0 batches: each task may go to any thread.
  check(api_, api_.KernelContext_ParallelFor(context_, &Guarded::run, count, size_t{0}, &guard));
  if (guard.failed) std::rethrow_exception(guard.error);
}

Op::Op(const OpType& op_type, ElementType op_element) : CustomOp{}, type(op_type), element(op_element) {
  version = kApiVersion;
  GetName = [](const CustomOp* op) { return op_of(op).type.name; };
  GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  GetInputTypeCount = [](const CustomOp* op) { return op_of(op).type.inputs.size(); };
  GetInputType = [](const CustomOp* op, size_t i) { return resolved(op_of(op).type.inputs[i].type, op); };
  GetInputCharacteristic = [](const CustomOp* op, size_t i) {
    return op_of(op).type.inputs[i].characteristic;
  };
  GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
  GetOutputTypeCount = [](const CustomOp* op) { return op_of(op).type.outputs.size(); };
  GetOutputType = [](const CustomOp* op, size_t i) { return resolved(op_of(op).type.outputs[i].type, op); };
  GetOutputCharacteristic = [](const CustomOp* op, size_t i) {
    return op_of(op).type.outputs[i].characteristic;
  };
  GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };  // they may differ in type
  GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
}

}  // namespace doge::ort
