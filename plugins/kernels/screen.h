// A certified screen for a float head: an int8 copy says, with an error bound, which tokens cannot be best.
//
// For token n with weights w = w8 + e the logit w . x lies within |e| |x| of w8 . x (Cauchy and Schwarz), where
// |e| is known from packing; the digits of x and the roundings of both sums add a little more. What the bound
// cannot exclude is computed from the float weights in the order of gemm_f32, so that every logit that comes
// out has the bits it would have had without the screen.
#pragma once

#include <vector>

#include "packed.h"

namespace doge {

class Screen {
 public:
  Screen() = default;
  // Empty where the weight is not float32 or float16, or its width has no block for int8.
  explicit Screen(const Matrix& weight);
  bool empty() const { return copy_.empty(); }
  const Packed& weight() const { return copy_; }
  // How far a logit can be from the copy's, by unit of `error`: for the row x and its digits.
  float reach(const float* x, const uint8_t* digits) const;
  // values of panel p become lower bounds; upper[64] the upper ones.
  void bound(int64_t p, float reach, float* values, float* upper) const;
  // set(i, logit of token id(i)) for i < count.
  template <class Id, class Set>
  void exact(const float* x, size_t count, Id&& id, Set&& set) const {
    constexpr size_t kAtOnce = 64;
    float values[kAtOnce];
    for (size_t first = 0; first < count; first += kAtOnce) {
      const size_t some = count - first < kAtOnce ? count - first : kAtOnce;
      int64_t tokens[kAtOnce];
      for (size_t i = 0; i < some; i++) tokens[i] = id(first + i);
      compute(x, some, tokens, values);
      for (size_t i = 0; i < some; i++) set(first + i, values[i]);
    }
  }

 private:
  void compute(const float* x, size_t count, const int64_t* tokens, float* values) const;

  Matrix original_;
  Packed copy_;
  std::vector<float> error_;  // of each token, padded to whole panels
};

}  // namespace doge
