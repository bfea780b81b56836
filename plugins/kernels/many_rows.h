// The best tokens of several rows at once: all their logits, or bounds of them, lie in memory before one is chosen.
//
// Of each panel the largest lower bound is kept. The n-th largest of these is a floor that n tokens reach, each of a panel
// of its own, and of 64 among 32,768 there are few in one panel: what lies below the floor is nearly all that can.
#pragma once

#include <utility>
#include <vector>

#include "logit_screen.h"
#include "packed.h"

namespace doge {

class ManyRows {
 public:
  static bool pays(int64_t batch, int64_t count, int64_t panels);
  // screen: nullptr where the products are the logits. Its memory is the calling thread's, and lasts until the next one.
  ManyRows(const Packed& weight, const LogitScreen* screen, int64_t batch, int64_t count);
  // The products of panel p with all rows: floats, or digits `stride` bytes apart. reach: of each row, of the screen.
  void look(int64_t p, const float* floats, const uint8_t* digits, size_t stride, const float* reach);
  // The tokens that can be among the best of row b, with their logits; after look() for every panel.
  void choose(int64_t b, const float* floats, const uint8_t* digits,
              std::vector<std::pair<float, int64_t>>* tokens) const;

 private:
  const Packed& weight_;
  const LogitScreen* screen_;
  int64_t batch_, count_, panels_;
  float* values_;             // [batch, panels, 64]: logits, or their upper bounds
  float *lowest_, *highest_;  // [batch, panels]: the largest lower and upper bound of a panel
};

}  // namespace doge
