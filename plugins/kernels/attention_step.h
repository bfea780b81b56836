// One new token on a static cache in place, the common case: as few phases as can be.
#pragma once

#include "attention_cached.h"

namespace doge {

class StepAttention : public FewQueries {
 public:
  using FewQueries::FewQueries;
  void run(Team::Worker& worker) const override;
  bool in_parts(int64_t width) const override { return keeps_all() && leaves_parts(width); }
  void merge_all(int64_t width, float* output) const override { merge_rows(width, output); }

 private:
  // Nothing is left out, so that no worker waits for the weights of all keys.
  bool keeps_all() const { return !limited_ && !io_.keep; }
  void step(int64_t b, int64_t g) const;
  void step_part(const Part& part) const;
  void weigh_new(int64_t b, int64_t g) const;
  void read_weights(int64_t b, int64_t g, int64_t first, int64_t end) const;
};

}  // namespace doge
