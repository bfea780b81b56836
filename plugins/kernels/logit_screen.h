// Rules tokens out for a head: a smaller copy of its weights says, with an error bound, which tokens cannot be
// best. A float head has a copy in int8, an int8 head one in int4. For several rows, which wait for the processor and not
// for memory, quantized weights are their own copy, and of the digits of x only the high bytes are multiplied.
//
// For token n with weights w = copy + e the logit w . x lies within |e| |x| of copy . x (Cauchy and Schwarz), where
// |e| is known from packing; the digits of x and the roundings of both sums add a little more. Of a rough product the
// logit lies within |w| |l| for the low bytes l of the digits. What the bound
// cannot exclude is computed from the weights themselves in the order of gemm_f32 or gemm_i8, so that every logit that
// comes out has the bits it would have had without the screen.
#pragma once

#include <algorithm>
#include <vector>

#include "packed.h"

namespace doge {

class LogitScreen {
 public:
  LogitScreen() = default;
  // Empty where the weight is of another type, or has no block for the copy.
  explicit LogitScreen(const Matrix& weight);
  // Rough products of quantized weights with their packed selves. Empty where the processor has none.
  LogitScreen(const Matrix& weight, const Packed& packed);
  bool empty() const { return copy_.empty(); }
  const Packed& weight() const { return copy_; }
  // The products of panel p that the bounds are about: see Packed::multiply.
  void multiply(int64_t p, int64_t rows, const void* x, int64_t ldx, float* out, int64_t ldo) const {
    if (rough_)
      copy_.multiply_roughly(p, rows, x, ldx, out, ldo);
    else
      copy_.multiply(p, rows, x, ldx, out, ldo);
  }
  // How far a logit can be from the copy's, by unit of `error`: for the row x, and its digits for the copy.
  float reach(const float* x, const uint8_t* digits) const;
  // upper[64]: the upper bounds of the values of panel p.
  void upper(int64_t p, float reach, const float* values, float* upper) const;
  // The values of panel p become lower bounds.
  void lower(int64_t p, float reach, float* values) const;
  // set(i, logit of token id(i)) for i < count. digits: the row x quantized for the copy.
  template <class Id, class Set>
  void exact(const float* x, const uint8_t* digits, size_t count, Id&& id, Set&& set) const {
    float values[kAtOnce];
    for (size_t first = 0; first < count; first += kAtOnce) {
      const size_t some = std::min(count - first, kAtOnce);
      int64_t tokens[kAtOnce];
      for (size_t i = 0; i < some; i++) tokens[i] = id(first + i);
      compute(x, digits, some, tokens, values);
      for (size_t i = 0; i < some; i++) set(first + i, values[i]);
    }
  }

 private:
  static constexpr size_t kAtOnce = 64;
  void copy_floats(int64_t block);
  void copy_int8();
  bool keep_error(int64_t token, double error, double size, double roundings);
  void compute(const float* x, const uint8_t* digits, size_t count, const int64_t* tokens, float* values) const;

  Matrix original_;
  Packed copy_;
  bool rough_ = false;
  std::vector<float> error_;  // of each token, padded to whole panels
};

}  // namespace doge
