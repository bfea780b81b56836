// Dynamic mask attention as phases of a team, so that a whole layer can be one operator.
//
// Selection without a sort: a query keeps the keys with dt above its threshold, and of those equal to it the
// ones up to position `last`. In decode the threshold is the W-th largest dt; in prefill it runs along with
// the queries, since a key that once fell out of the window never comes back.
#pragma once

#include "doge_kernels.h"
#include "isa.h"
#include "team.h"

namespace doge {

// Weights as the loops want them.
struct AttentionParts {
  AttentionConfig config;
  Vector q_norm, k_norm;
  std::vector<double> dt_weight, dt_bias, A;
  AttentionParts(const AttentionConfig& config, const AttentionWeights& weights);  // throws Error
};

class AttentionJob {
 public:
  // query [batch * sequence, heads * head_dim], key and value [batch * sequence, kv_heads * head_dim] and
  // output, as query: floats. The query is overwritten. Memory comes from the calling thread's scratch and
  // lasts until its next job.
  AttentionJob(const AttentionParts& parts, const AttentionIO& io, float* query, float* key, float* value,
               float* output);
  void run(Team::Worker& worker) const;
  // How many threads can be of use.
  size_t width() const;

 private:
  struct Partial;
  int64_t base(int64_t b) const { return io_.cache_position ? io_.cache_position[b] : io_.past; }
  int64_t start(int64_t b) const;
  void copy_past(int64_t chunk) const;
  void attend(Team::Worker& worker) const;
  void step(int64_t b, int64_t g) const;
  void append(int64_t b, int64_t g, int64_t first, int64_t count) const;
  void weigh(int64_t b, int64_t first, int64_t count) const;
  void weigh_static(int64_t b) const;
  void limit(int64_t b, int64_t g) const;
  void limit_running(int64_t b, int64_t g) const;
  void limit_sliding(int64_t b, int64_t g) const;
  void transpose_keys(int64_t b, int64_t g, int64_t block) const;
  void decode(int64_t b, int64_t g, int64_t split) const;
  void merge(int64_t b, int64_t g) const;
  void prefill(int64_t b, int64_t g, int64_t tile) const;
  void accumulate(int64_t b, int64_t g, int64_t rows, const int64_t* positions, const float* q, int64_t first,
                  int64_t count, float* best, float* sums, float* acc) const;
  void finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc) const;
  void write_keep(int64_t b, int64_t g) const;
  const float* cached(const void* cache, int64_t b, int64_t g, int64_t first, int64_t count, float* room) const;

  const AttentionParts& parts_;
  const AttentionIO& io_;
  const Isa& loops_;
  int64_t heads_, kv_heads_, d_, group_, length_, row_, window_;  // row_: keys of a row of present_*
  int64_t most_keys_;                                              // of any row of the batch
  int64_t splits_, tiles_, tile_rows_, blocks_;
  bool single_, limited_, step_in_place_;
  float *query_, *key_, *value_, *output_;
  float* weights_;     // [batch, kv_heads, row_]: dt where visible, -inf where not
  float* thresholds_;  // [batch, kv_heads, sequence]
  int64_t* lasts_;     // as thresholds_
  float* partials_;    // [batch, kv_heads, splits, rows, d + 2]
  float* panels_;      // [batch, kv_heads, blocks, d, 64]
};

}  // namespace doge
