// Dynamic mask attention as phases of a team, so that a whole layer can be one operator.
//
// Selection without a sort: a query keeps the keys with dt above its threshold, and of those equal to it the
// ones up to position `last`. In decode the threshold is the W-th largest dt; in prefill it runs along with
// the queries, since a key that once fell out of the window never comes back.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "doge_kernels.h"
#include "isa.h"
#include "team.h"

namespace doge {

constexpr int64_t kSplit = 256;  // keys that one pass of the softmax takes
constexpr int64_t kSingle = 4;   // sequences up to this are taken as decode steps

constexpr float kNone = -std::numeric_limits<float>::infinity();  // the weight of a key that is not seen

// What a thread of attention keeps from call to call.
enum AttentionScratch { kQueries, kValue, kAngles, kScores, kRoom, kAcc, kAttentionScratches };
Scratch<float>& scratch(AttentionScratch which);

// x as it is after a store in `dtype`.
void round_to(Dtype dtype, int64_t n, float* x);

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
  // output, as query: floats, which need not be there yet. The query is overwritten. Memory is `arena`'s.
  AttentionJob(const AttentionParts& parts, const AttentionIO& io, float* query, float* key, float* value,
               float* output, Arena& arena);
  void run(Team::Worker& worker) const;
  // After `run` the outputs may be in parts yet: then they are what `merge_all` makes of them, which is so little
  // that every worker may do it for itself, in memory of its own.
  bool in_parts() const { return inner().shared_step_ && inner().splits_ > 1; }
  void merge_all(float* output) const;
  // What is left to do once, after `run` of all workers.
  void commit() const;
  // How many threads can be of use.
  size_t width() const;

 private:
  // The softmax of some rows, as far as it has come: acc [rows, d], and the best score and the sum of each row.
  struct Running {
    float *acc, *best, *sums;
  };
  Running fresh(float* room, int64_t rows) const;  // room: rows * (d + 2)
  Running fresh_split(int64_t b, int64_t g, int64_t split) const;
  // Several tokens on a bounded cache, as the static one that it is laid out as.
  struct Laid;
  // Where a new key goes in a bounded cache (-1: nowhere), and its weight.
  struct Place {
    int64_t slot;
    float dt;
  };
  const AttentionJob& inner() const { return laid_job_ ? *laid_job_ : *this; }
  // The place of the first new key; of one in place on a bounded cache that of the last key of all.
  int64_t base(int64_t b) const {
    if (used_) return std::min(used_[b], row_ - 1);
    return io_.cache_position ? io_.cache_position[b] : io_.past;
  }
  void count_used(Arena& arena);
  void lay_out(Arena& arena);
  void run_laid(Team::Worker& worker) const;
  void gather(int64_t b, int64_t g) const;
  void keep_best(int64_t b, int64_t g) const;
  Place find_place(int64_t b, int64_t g) const;
  void step_bounded(int64_t b, int64_t g, int64_t split, const Place& place) const;
  void attend_alone(int64_t b, int64_t g, int64_t position, const float* angles, int64_t first, int64_t count,
                    const Running& softmax) const;
  int64_t start(int64_t b) const;
  void copy_past(int64_t chunk) const;
  void attend(Team::Worker& worker) const;
  void step(int64_t b, int64_t g) const;
  void step_part(int64_t b, int64_t g, int64_t split) const;
  float new_weight(int64_t b, int64_t g) const;
  void weigh_new(int64_t b, int64_t g) const;
  void read_weights(int64_t b, int64_t g, int64_t first, int64_t end) const;
  void append_key(int64_t b, int64_t g, int64_t s, const float* angles, int64_t slot) const;
  void append(int64_t b, int64_t g, int64_t first, int64_t count) const;
  void weigh(int64_t b, int64_t first, int64_t count) const;
  void keep_static(int64_t b) const;
  void limit(int64_t b, int64_t g) const;
  void limit_running(int64_t b, int64_t g) const;
  void limit_sliding(int64_t b, int64_t g) const;
  void transpose_keys(int64_t b, int64_t g, int64_t block) const;
  void decode(int64_t b, int64_t g, int64_t split) const;
  void merge(int64_t b, int64_t g, float* output) const;
  void prefill(int64_t b, int64_t g, int64_t tile) const;
  const float* queries(int64_t b, int64_t g, int64_t first, int64_t rows) const;
  void accumulate(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first, int64_t count,
                  const Running& softmax) const;
  void finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc, float* output) const;
  void finish_all(int64_t b, int64_t g, int64_t first, int64_t rows, const Running& softmax) const;
  void write_keep(int64_t b, int64_t g) const;
  const float* cached(const void* cache, int64_t b, int64_t g, int64_t first, int64_t count, float* room) const;

  const AttentionParts& parts_;
  const AttentionIO& io_;
  const Isa& loops_;
  int64_t heads_, kv_heads_, d_, group_, length_, row_, window_;  // row_: keys of a row of present_*
  int64_t most_keys_;                                              // of any row of the batch
  int64_t splits_, tiles_, tile_rows_, blocks_;
  int64_t split_size_;
  bool single_, limited_, step_in_place_, shared_step_;  // shared_step_: in place, and no key is left out
  float *query_, *key_, *value_, *output_;
  float* weights_;     // [batch, kv_heads, row_]: dt where visible, -inf where not
  float* thresholds_;  // [batch, kv_heads, sequence]
  int64_t* lasts_;     // as thresholds_
  float* partials_;    // [batch, kv_heads, splits, rows, d + 2]
  float* panels_;      // [batch, kv_heads, blocks, d, 64]
  int64_t* used_ = nullptr;  // bounded: [batch], slots in use before the call
  Place* places_ = nullptr;  // bounded, in place: [batch, kv_heads]
  std::shared_ptr<Laid> laid_;  // shared, for it is not known here
  const AttentionJob* laid_job_ = nullptr;
};

}  // namespace doge
