// Tensors of ONNX Runtime as this library sees them, and its statuses as exceptions.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <string>

#include "doge_kernels.h"
#include "ort_abi.h"

namespace doge::ort {

// The functions of one runtime. `newer`: those of kNewerApiVersion are there too.
struct Runtime {
  const Api* api = nullptr;
  bool newer = false;
};

// By the table that a kernel is made with; it registered this library before.
Runtime runtime_of(const Api* api);

// Throws Error with the status's message, and releases it; null is success.
void check(const Api& api, Status* status);

// Something of the runtime's, given back at the end of a scope.
template <typename T>
struct Released {
  const Api& api;
  T* thing;
  void (*release)(const Api&, T*);
  ~Released() { release(api, thing); }
};

// Whatever `body` throws, as a status: an exception must not cross the ABI.
template <typename Body>
Status* guarded(const Api& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return api.CreateStatus(kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(kFail, "doge: could not allocate memory.");
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "doge: an unknown failure.");
  }
}

// A shape of up to kMaxRank dimensions, without memory of its own.
class Shape {
 public:
  static constexpr size_t kMaxRank = 8;
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  Shape(const int64_t* sizes, size_t rank);  // throws Error where the rank is beyond kMaxRank

  size_t rank() const { return rank_; }
  int64_t operator[](size_t i) const { return sizes_[i]; }
  int64_t& operator[](size_t i) { return sizes_[i]; }
  const int64_t* data() const { return sizes_.data(); }
  int64_t elements() const;
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }
  std::string text() const;  // "[2, 3]"

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  size_t rank_ = 0;
};

// A tensor's type, shape and memory; all of it belongs to the runtime.
struct Tensor {
  ElementType type = kUndefined;
  Shape shape;
  void* data = nullptr;

  // Throws Error, naming `name`, where type or shape is another one.
  const Tensor& expect(const char* name, ElementType type, const Shape& shape) const;
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

Tensor tensor_of(const Runtime& runtime, const Value* value);

const char* type_name(ElementType type);
Dtype dtype_of(ElementType type);  // none for a type that the kernels do not compute in or read
bool is_float(ElementType type);   // float32, float16 or bfloat16

// The numbers of a float32, float16 or bfloat16 tensor, as float32.
Vector widened(const Tensor& tensor);

}  // namespace doge::ort
