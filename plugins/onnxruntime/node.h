// A node of the graph when its kernel is made: attributes, inputs by role, and the weights among them.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "tensor.h"

namespace doge::ort {

class Node {
 public:
  Node(const Runtime& runtime, const KernelInfo* info, ElementType element);

  // Reads the attribute `inputs` of a node with variadic inputs: the roles, comma separated.
  // Throws Error where they are not as many as the inputs, occur twice, or are not in `known`.
  void read_roles(const std::vector<std::string>& known);

  ElementType element() const { return element_; }  // of the graph's floating point tensors
  size_t output_count() const;
  ElementType output_type(size_t index) const;

  // Attributes; Error where one is missing or out of its range.
  int64_t integer(const char* name, int64_t lowest, int64_t highest) const;
  bool flag(const char* name) const { return integer(name, 0, 1) != 0; }
  float number(const char* name) const;
  std::string text(const char* name) const;

  bool has(const std::string& role) const { return find(role) >= 0; }
  // The place of an input; Error where there is none of that role.
  size_t place(const std::string& role) const;
  int find(const std::string& role) const;  // -1: none

  // Weights: constant inputs. Error where one is missing, not constant, or of another type or shape.
  bool constant(size_t index, Tensor* tensor) const;  // false: it is computed
  Tensor weight(const std::string& role) const;
  Vector vector(const std::string& role, const Shape& shape) const;
  Vector vector_or_empty(const std::string& role, const Shape& shape) const;
  // [n, k] with its `role`.scale where it is quantized; n 0: any.
  Matrix matrix(const std::string& role, int64_t n, int64_t k) const;
  // A matrix with `role`.bias where it has one.
  Linear linear(const std::string& role, int64_t n, int64_t k) const;

  // How many threads the session has, as far as one can know.
  size_t threads() const;

 private:
  void check_attribute(Status* status, const char* name, const char* kind) const;

  const Runtime& runtime_;
  const Api& api_;
  const KernelInfo* info_;
  ElementType element_;
  std::vector<std::string> roles_;
};

}  // namespace doge::ort
