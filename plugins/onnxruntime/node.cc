#include "node.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace doge::ort {

namespace {

// Set by doge_export's own sessions: the C API does not tell how many threads a session has.
constexpr const char* kThreadsKey = "doge_export.threads";

void release_type(const Api& api, TypeInfo* info) { api.ReleaseTypeInfo(info); }
void release_pairs(const Api& api, KeyValuePairs* pairs) { api.ReleaseKeyValuePairs(pairs); }

std::string range(int64_t lowest, int64_t highest) {
  return std::to_string(lowest) + " to " + std::to_string(highest);
}

size_t processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

Node::Node(const Runtime& runtime, const KernelInfo* info, ElementType element)
    : runtime_(runtime), api_(*runtime.api), info_(info), element_(element) {}

void Node::read_roles(const std::vector<std::string>& known) {
  const std::string list = text("inputs");
  for (size_t start = 0; start <= list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    roles_.push_back(list.substr(start, end - start));
    start = end + 1;
  }
  size_t count = 0;
  check(api_, api_.KernelInfo_GetInputCount(info_, &count));
  if (roles_.size() != count)
    throw Error("The attribute inputs names " + std::to_string(roles_.size()) + " roles, and the node has " +
                std::to_string(count) + " inputs.");
  for (size_t i = 0; i < count; ++i) {
    if (std::find(known.begin(), known.end(), roles_[i]) == known.end())
      throw Error("An input has the role '" + roles_[i] + "', which this library does not know.");
    if (static_cast<size_t>(find(roles_[i])) != i)
      throw Error("Two inputs have the role " + roles_[i] + ".");
  }
}

size_t Node::output_count() const {
  size_t count = 0;
  check(api_, api_.KernelInfo_GetOutputCount(info_, &count));
  return count;
}

ElementType Node::output_type(size_t index) const {
  TypeInfo* info = nullptr;
  check(api_, api_.KernelInfo_GetOutputTypeInfo(info_, index, &info));
  const Released<TypeInfo> owned{api_, info, &release_type};
  const TensorInfo* tensor = nullptr;
  check(api_, api_.CastTypeInfoToTensorInfo(info, &tensor));
  ElementType type = kUndefined;
  if (tensor != nullptr) check(api_, api_.GetTensorElementType(tensor, &type));
  return type;
}

void Node::check_attribute(Status* status, const char* name, const char* kind) const {
  if (status == nullptr) return;
  api_.ReleaseStatus(status);
  throw Error(std::string("The attribute ") + name + " is missing, or is not " + kind + ".");
}

int64_t Node::integer(const char* name, int64_t lowest, int64_t highest) const {
  int64_t value = 0;
  check_attribute(api_.KernelInfoGetAttribute_int64(info_, name, &value), name, "a whole number");
  if (value < lowest || value > highest)
    throw Error(std::string("The attribute ") + name + " is " + std::to_string(value) + ", outside " +
                range(lowest, highest) + ".");
  return value;
}

float Node::number(const char* name) const {
  float value = 0;
  check_attribute(api_.KernelInfoGetAttribute_float(info_, name, &value), name, "a number");
  if (!std::isfinite(value)) throw Error(std::string("The attribute ") + name + " is not finite.");
  return value;
}

std::string Node::text(const char* name) const {
  size_t size = 0;
  Status* status = api_.KernelInfoGetAttribute_string(info_, name, static_cast<char*>(nullptr), &size);
  check_attribute(status, name, "a string");
  std::string value(size, '\0');
  if (size > 0) {
    check(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
    value.resize(size - 1);  // without the final zero
  }
  return value;
}

int Node::find(const std::string& role) const {
  const auto at = std::find(roles_.begin(), roles_.end(), role);
  return at == roles_.end() ? -1 : static_cast<int>(at - roles_.begin());
}

size_t Node::place(const std::string& role) const {
  const int at = find(role);
  if (at < 0) throw Error("There is no input of the role " + role + ".");
  return static_cast<size_t>(at);
}

bool Node::constant(size_t index, Tensor* tensor) const {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return false;
  *tensor = tensor_of(runtime_, value);
  return true;
}

Tensor Node::weight(const std::string& role) const {
  Tensor tensor;
  if (!constant(place(role), &tensor))
    throw Error(role + " is not constant: a weight must be an initializer of the file.");
  return tensor;
}

Vector Node::vector(const std::string& role, const Shape& shape) const {
  const Tensor tensor = weight(role);
  if (!is_float(tensor.type)) throw Error(role + " is " + type_name(tensor.type) + ", not float32, float16 or bfloat16.");
  tensor.expect(role.c_str(), tensor.type, shape);
  return widened(tensor);
}

Vector Node::vector_or_empty(const std::string& role, const Shape& shape) const {
  return has(role) ? vector(role, shape) : Vector();
}

Matrix Node::matrix(const std::string& role, int64_t n, int64_t k) const {
  const Tensor tensor = weight(role);
  Matrix matrix;
  matrix.dtype = dtype_of(tensor.type);
  if (matrix.dtype == Dtype::none)
    throw Error(role + " is " + type_name(tensor.type) + ", which no kernel reads.");
  if (tensor.shape.rank() == 2 && n == 0) n = tensor.shape[0];
  if (n < 1 || k < 1) throw Error(role + " has the shape " + tensor.shape.text() + ".");
  tensor.expect(role.c_str(), tensor.type, {n, k});
  matrix.n = n;
  matrix.k = k;
  matrix.data = tensor.data;
  const bool quantized = matrix.dtype == Dtype::int8 || matrix.dtype == Dtype::int4;
  const std::string scale_role = role + ".scale";
  if (quantized != has(scale_role))
    throw Error(role + " is " + type_name(tensor.type) +
                (quantized ? " and has no " : ", and yet there is a ") + scale_role + ".");
  if (quantized) {
    const Tensor scale = weight(scale_role);
    const int64_t blocks = scale.shape.rank() == 2 ? scale.shape[1] : 0;
    const int64_t step = matrix.dtype == Dtype::int8 ? 4 : 8;
    if (blocks < 1 || k % blocks != 0 || (k / blocks) % step != 0 || k / blocks > 128)
      throw Error(scale_role + " has the shape " + scale.shape.text() + ", which cuts rows of " +
                  std::to_string(k) + " into no blocks of " + std::to_string(step) + " to 128.");
    scale.expect(scale_role.c_str(), kFloat16, {n, blocks});
    matrix.scales = scale.as<uint16_t>();
    matrix.block = k / blocks;
  }
  return matrix;
}

Linear Node::linear(const std::string& role, int64_t n, int64_t k) const {
  Linear linear;
  linear.weight = matrix(role, n, k);
  linear.bias = vector_or_empty(role + ".bias", {linear.weight.n});
  return linear;
}

size_t Node::threads() const {
  if (runtime_.newer) {
    KeyValuePairs* pairs = nullptr;
    check(api_, api_.KernelInfo_GetConfigEntries(info_, &pairs));
    const Released<KeyValuePairs> owned{api_, pairs, &release_pairs};
    const char* value = api_.GetKeyValue(pairs, kThreadsKey);
    const long count = value == nullptr ? 0 : std::strtol(value, nullptr, 10);
    if (count > 0) return static_cast<size_t>(std::min(count, 1024L));
  }
  return processors();
}

}  // namespace doge::ort
