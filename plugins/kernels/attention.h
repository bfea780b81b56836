// Dynamic mask attention as phases of a team, so that a whole layer can be one operator.
//
// Selection without a sort: a query keeps the keys with dt above its threshold, and of those equal to it the
// ones up to position `last`. In decode the threshold is the W-th largest dt; in prefill it runs along with
// the queries, since a key that once fell out of the window never comes back.
//
// A mode is a class: FewQueries and Prefill on a growing or static cache (attention_cached.h), StepAttention for
// one token on a static cache in place (attention_step.h), BoundedStep and BoundedPieces on a bounded cache
// (attention_bounded.h). `make_attention_job` chooses.
#pragma once

#include <memory>

#include "doge_kernels.h"
#include "team.h"

namespace doge {

// Weights as the loops want them.
struct AttentionParts {
  AttentionConfig config;
  Vector q_norm, k_norm;
  std::vector<double> dt_weight, dt_bias, A;
  AttentionParts(const AttentionConfig& config, const AttentionWeights& weights);  // throws Error
};

// query and output [tokens, heads * head_dim], key and value [tokens, kv_heads * head_dim].
// What is read need not be there before the first worker runs. The query is overwritten.
struct AttentionRows {
  float *query, *key, *value, *output;
};

// One call of attention.
class AttentionJob {
 public:
  virtual ~AttentionJob() = default;
  virtual void run(Team::Worker& worker) const = 0;
  // After `run` of a team of so many the outputs may be in parts yet: then they are what `merge_all` makes of them,
  // which is so little that every worker may do it for itself, in memory of its own.
  virtual bool in_parts(int64_t) const { return false; }
  virtual void merge_all(int64_t, float*) const {}
  // What is left to do once, after `run` of all workers.
  virtual void commit() const {}
  // How many threads can be of use.
  virtual size_t width() const = 0;
};

// The job of a call; memory is `arena`'s, and `parts` and `io` last as long as the job. Throws Error.
std::unique_ptr<AttentionJob> make_attention_job(const AttentionParts& parts, const AttentionIO& io,
                                                 const AttentionRows& rows, Arena& arena);

}  // namespace doge
