// The part of ONNX Runtime's C ABI that this library uses, in our own words: no package that a build could
// depend on ships the real header. OrtApi is a table of functions to which releases only append, so a slot
// keeps its number for ever. check_abi.cc holds every line of this file to the real header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace doge::ort {

// The version that is asked for (onnxruntime 1.17). What is newer is optional, asked for beside it.
constexpr uint32_t kApiVersion = 17;
constexpr uint32_t kNewerApiVersion = 24;

struct Status;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct KeyValuePairs;
struct CustomOp;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// ONNXTensorElementDataType
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kInt8 = 3,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kBfloat16 = 16,
  kInt4 = 22,
};

// OrtCustomOpInputOutputCharacteristic
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

// OrtMemType
enum MemoryType : int { kDefaultMemory = 0 };

// X(name in OrtApi, slot, return type, parameters...)
#define DOGE_ORT_SLOTS(X)                                                                                \
  X(CreateStatus, 0, Status*, ErrorCode, const char*)                                                    \
  X(GetErrorMessage, 2, const char*, const Status*)                                                      \
  X(CreateCustomOpDomain, 26, Status*, const char*, CustomOpDomain**)                                    \
  X(CustomOpDomain_Add, 27, Status*, CustomOpDomain*, const CustomOp*)                                   \
  X(AddCustomOpDomain, 28, Status*, SessionOptions*, CustomOpDomain*)                                    \
  X(GetTensorMutableData, 51, Status*, Value*, void**)                                                   \
  X(CastTypeInfoToTensorInfo, 55, Status*, const TypeInfo*, const TensorInfo**)                          \
  X(GetTensorElementType, 60, Status*, const TensorInfo*, ElementType*)                                  \
  X(GetDimensionsCount, 61, Status*, const TensorInfo*, size_t*)                                         \
  X(GetDimensions, 62, Status*, const TensorInfo*, int64_t*, size_t)                                     \
  X(GetTensorTypeAndShape, 65, Status*, const Value*, TensorInfo**)                                      \
  X(KernelInfoGetAttribute_float, 85, Status*, const KernelInfo*, const char*, float*)                   \
  X(KernelInfoGetAttribute_int64, 86, Status*, const KernelInfo*, const char*, int64_t*)                 \
  X(KernelInfoGetAttribute_string, 87, Status*, const KernelInfo*, const char*, char*, size_t*)          \
  X(KernelContext_GetInputCount, 88, Status*, const KernelContext*, size_t*)                             \
  X(KernelContext_GetOutputCount, 89, Status*, const KernelContext*, size_t*)                            \
  X(KernelContext_GetInput, 90, Status*, const KernelContext*, size_t, const Value**)                    \
  X(KernelContext_GetOutput, 91, Status*, KernelContext*, size_t, const int64_t*, size_t, Value**)       \
  X(ReleaseStatus, 93, void, Status*)                                                                    \
  X(ReleaseTypeInfo, 98, void, TypeInfo*)                                                                \
  X(ReleaseTensorTypeAndShapeInfo, 99, void, TensorInfo*)                                                \
  X(ReleaseCustomOpDomain, 101, void, CustomOpDomain*)                                                   \
  X(KernelInfo_GetInputCount, 230, Status*, const KernelInfo*, size_t*)                                  \
  X(KernelInfo_GetOutputCount, 231, Status*, const KernelInfo*, size_t*)                                 \
  X(KernelInfo_GetOutputTypeInfo, 235, Status*, const KernelInfo*, size_t, TypeInfo**)                   \
  X(KernelInfoGetConstantInput_tensor, 249, Status*, const KernelInfo*, size_t, int*, const Value**)     \
  X(KernelContext_ParallelFor, 274, Status*, const KernelContext*, void (*)(void*, size_t), size_t,      \
    size_t, void*)                                                                                       \
  /* of API 18 and later: only where kNewerApiVersion is to be had */                                    \
  X(GetKeyValue, 297, const char*, const KeyValuePairs*, const char*)                                    \
  X(ReleaseKeyValuePairs, 300, void, KeyValuePairs*)                                                     \
  X(KernelInfo_GetConfigEntries, 391, Status*, const KernelInfo*, KeyValuePairs**)                       \
  X(GetTensorElementTypeAndShapeDataReference, 414, Status*, const Value*, ElementType*, const int64_t**, \
    size_t*)

// OrtApi: the table, read by slot.
struct Api {
#define DOGE_ORT_ACCESSOR(name, slot, result, ...)                            \
  template <typename... Arguments>                                            \
  result name(Arguments... arguments) const {                                 \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(table[slot])(arguments...); \
  }
  DOGE_ORT_SLOTS(DOGE_ORT_ACCESSOR)
#undef DOGE_ORT_ACCESSOR
  using Function = void (*)();
  Function table[1];  // and on; how long it is depends on the runtime
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp as of API version 17; `version` tells the runtime that nothing follows.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, void*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace doge::ort
