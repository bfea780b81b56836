#include "tensor.h"

#include <algorithm>
#include <cstring>

namespace doge::ort {

void check(const Api& api, Status* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw Error(message);
}

Shape::Shape(std::initializer_list<int64_t> sizes) : Shape(sizes.begin(), sizes.size()) {}

Shape::Shape(const int64_t* sizes, size_t rank) : rank_(rank) {
  if (rank > kMaxRank) throw Error("A tensor has " + std::to_string(rank) + " dimensions.");
  std::copy(sizes, sizes + rank, sizes_.begin());
}

int64_t Shape::elements() const {
  int64_t count = 1;
  for (size_t i = 0; i < rank_; ++i) count *= sizes_[i];
  return count;
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && std::equal(sizes_.begin(), sizes_.begin() + rank_, other.sizes_.begin());
}

std::string Shape::text() const {
  std::string text = "[";
  for (size_t i = 0; i < rank_; ++i) text += (i ? ", " : "") + std::to_string(sizes_[i]);
  return text + "]";
}

const Tensor& Tensor::expect(const char* name, ElementType wanted, const Shape& wanted_shape) const {
  if (type != wanted)
    throw Error(std::string(name) + " is " + type_name(type) + ", and should be " + type_name(wanted) + ".");
  if (shape != wanted_shape)
    throw Error(std::string(name) + " has the shape " + shape.text() + ", and should have " +
                wanted_shape.text() + ".");
  return *this;
}

namespace {

void release_tensor_info(const Api& api, TensorInfo* info) { api.ReleaseTensorTypeAndShapeInfo(info); }

}  // namespace

Tensor tensor_of(const Runtime& runtime, const Value* value) {
  const Api& api = *runtime.api;
  if (value == nullptr) throw Error("An input is missing.");
  Tensor tensor;
  if (runtime.newer) {
    const int64_t* sizes = nullptr;
    size_t rank = 0;
    check(api, api.GetTensorElementTypeAndShapeDataReference(value, &tensor.type, &sizes, &rank));
    tensor.shape = Shape(sizes, rank);
  } else {
    TensorInfo* info = nullptr;
    check(api, api.GetTensorTypeAndShape(value, &info));
    const Released<TensorInfo> owned{api, info, &release_tensor_info};
    size_t rank = 0;
    std::array<int64_t, Shape::kMaxRank> sizes{};
    check(api, api.GetTensorElementType(info, &tensor.type));
    check(api, api.GetDimensionsCount(info, &rank));
    if (rank <= sizes.size()) check(api, api.GetDimensions(info, sizes.data(), rank));
    tensor.shape = Shape(sizes.data(), rank);
  }
  check(api, api.GetTensorMutableData(const_cast<Value*>(value), &tensor.data));
  return tensor;
}

const char* type_name(ElementType type) {
  switch (type) {
    case kFloat: return "float32";
    case kInt8: return "int8";
    case kInt64: return "int64";
    case kDouble: return "float64";
    case kBool: return "bool";
    case kFloat16: return "float16";
    case kBfloat16: return "bfloat16";
    case kInt4: return "int4";
    default: return "of another type";
  }
}

Dtype dtype_of(ElementType type) {
  switch (type) {
    case kFloat: return Dtype::float32;
    case kFloat16: return Dtype::float16;
    case kBfloat16: return Dtype::bfloat16;
    case kInt8: return Dtype::int8;
    case kInt4: return Dtype::int4;
    default: return Dtype::none;
  }
}

bool is_float(ElementType type) { return type == kFloat || type == kFloat16 || type == kBfloat16; }

namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float size = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -size : size;
  }
  if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
  return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

}  // namespace

Vector widened(const Tensor& tensor) {
  Vector result(static_cast<size_t>(tensor.shape.elements()));
  const auto* halves = tensor.as<uint16_t>();
  for (size_t i = 0; i < result.size(); ++i) {
    switch (tensor.type) {
      case kFloat: result[i] = tensor.as<float>()[i]; break;
      case kFloat16: result[i] = half_to_float(halves[i]); break;
      case kBfloat16: result[i] = from_bits(static_cast<uint32_t>(halves[i]) << 16); break;
      default: throw Error(std::string("A weight is ") + type_name(tensor.type) + ", not float32, float16 or bfloat16.");
    }
  }
  return result;
}

}  // namespace doge::ort
