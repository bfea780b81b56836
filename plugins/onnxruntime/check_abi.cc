// Compiled, never run: holds ort_abi.h to ONNX Runtime's own onnxruntime_c_api.h (scripts/check_ort_abi.py).
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort_abi.h"

namespace doge::ort {
namespace {

// Whether a value of one type is passed as one of the other is: what the machine sees, not the names.
template <typename A, typename B>
constexpr bool alike() {
  if constexpr (std::is_void_v<A> || std::is_void_v<B>) {
    return std::is_void_v<A> && std::is_void_v<B>;
  } else {
    constexpr bool pointers = std::is_pointer_v<A> == std::is_pointer_v<B>;
    constexpr bool floats = std::is_floating_point_v<A> == std::is_floating_point_v<B>;
    return pointers && floats && sizeof(A) == sizeof(B);
  }
}

template <typename F>
struct Parts;
template <typename R, typename... P>
struct Parts<R (*)(P...)> {
  template <typename G>
  struct Against;
  template <typename S, typename... Q>
  struct Against<S (*)(Q...)> {
    static constexpr bool value = [] {
      if constexpr (sizeof...(P) == sizeof...(Q)) {
        return (alike<R, S>() && ... && alike<P, Q>());
      } else {
        return false;
      }
    }();
  };
};
template <typename R, typename... P>
struct Parts<R (*)(P...) noexcept> : Parts<R (*)(P...)> {};

template <typename F>
struct Plain {
  using Type = F;
};
template <typename R, typename... P>
struct Plain<R (*)(P...) noexcept> {
  using Type = R (*)(P...);
};

template <typename Ours, typename Theirs>
constexpr bool same_call = Parts<Ours>::template Against<typename Plain<Theirs>::Type>::value;

#define CHECK_SLOT(name, slot, result, ...)                                       \
  static_assert(offsetof(OrtApi, name) == slot * sizeof(void*), #name " has moved"); \
  static_assert(same_call<result (*)(__VA_ARGS__), decltype(OrtApi::name)>, #name " is called otherwise");
DOGE_ORT_SLOTS(CHECK_SLOT)

#define CHECK_BASE(name)                                                                            \
  static_assert(offsetof(ApiBase, name) == offsetof(OrtApiBase, name), #name " has moved"); \
  static_assert(same_call<decltype(ApiBase::name), decltype(OrtApiBase::name)>, #name);
CHECK_BASE(GetApi)
CHECK_BASE(GetVersionString)

static_assert(offsetof(CustomOp, version) == offsetof(OrtCustomOp, version), "version");
#define CHECK_MEMBER(name)                                                                          \
  static_assert(offsetof(CustomOp, name) == offsetof(OrtCustomOp, name), #name " has moved"); \
  static_assert(same_call<decltype(CustomOp::name), decltype(OrtCustomOp::name)>,             \
                #name " is called otherwise");
CHECK_MEMBER(CreateKernel)
CHECK_MEMBER(GetName)
CHECK_MEMBER(GetExecutionProviderType)
CHECK_MEMBER(GetInputType)
CHECK_MEMBER(GetInputTypeCount)
CHECK_MEMBER(GetOutputType)
CHECK_MEMBER(GetOutputTypeCount)
CHECK_MEMBER(KernelCompute)
CHECK_MEMBER(KernelDestroy)
CHECK_MEMBER(GetInputCharacteristic)
CHECK_MEMBER(GetOutputCharacteristic)
CHECK_MEMBER(GetInputMemoryType)
CHECK_MEMBER(GetVariadicInputMinArity)
CHECK_MEMBER(GetVariadicInputHomogeneity)
CHECK_MEMBER(GetVariadicOutputMinArity)
CHECK_MEMBER(GetVariadicOutputHomogeneity)
CHECK_MEMBER(CreateKernelV2)
CHECK_MEMBER(KernelComputeV2)
CHECK_MEMBER(InferOutputShapeFn)
CHECK_MEMBER(GetStartVersion)
CHECK_MEMBER(GetEndVersion)
// What follows is what came after API version 17.
static_assert(sizeof(CustomOp) == offsetof(OrtCustomOp, GetMayInplace), "OrtCustomOp has grown within");
static_assert(ORT_API_VERSION >= kNewerApiVersion, "the header is too old to know every slot");

#define CHECK_VALUE(ours, theirs) \
  static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs " has another value");
CHECK_VALUE(kFail, ORT_FAIL)
CHECK_VALUE(kInvalidArgument, ORT_INVALID_ARGUMENT)
CHECK_VALUE(kUndefined, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
CHECK_VALUE(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
CHECK_VALUE(kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
CHECK_VALUE(kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
CHECK_VALUE(kBool, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL)
CHECK_VALUE(kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
CHECK_VALUE(kBfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
CHECK_VALUE(kInt4, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4)
CHECK_VALUE(kRequired, INPUT_OUTPUT_REQUIRED)
CHECK_VALUE(kOptional, INPUT_OUTPUT_OPTIONAL)
CHECK_VALUE(kVariadic, INPUT_OUTPUT_VARIADIC)
CHECK_VALUE(kDefaultMemory, OrtMemTypeDefault)

}  // namespace
}  // namespace doge::ort
