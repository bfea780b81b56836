// The inputs of DecodeTokens that say how tokens are drawn.
#pragma once

#include "op.h"

namespace doge::ort {

class DrawInputs {
 public:
  static std::vector<std::string> roles();
  void read_places(const Node& node);
  // One a row; none where the best tokens are asked for. Throws Error where a tensor has another shape.
  std::vector<Draw> read(Call& call, int64_t batch, int64_t vocab) const;

 private:
  enum { kSampling, kKey, kSeen, kBias, kAllowed, kCount };
  int places_[kCount] = {-1, -1, -1, -1, -1};  // -1: an older graph, which has none
};

}  // namespace doge::ort
