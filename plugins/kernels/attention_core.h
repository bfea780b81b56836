// What all modes of attention share: the shapes of a call, its memory, and the softmax over some of the keys.
//
// One order of everything, whatever the company of a row and the call that brings it: keys are counted from the first
// place of the cache. A block of kBlock has a softmax of its own, relative to its own best score: the sum of its
// exponentials, and the sum of p * v in the order of the keys. The blocks of kSplit keys are merged one after another,
// and then these. A key that is not seen has p = 0, which changes no bit, and a block of which nothing is seen is left
// out. So the work of a row may be cut between any two blocks, and its queries may come in any number of calls.
#pragma once

#include <algorithm>
#include <limits>

#include "attention.h"
#include "isa.h"

namespace doge {

constexpr int64_t kSplit = 256;  // keys whose blocks are merged first
constexpr int64_t kBlock = 64;   // keys of one softmax
constexpr int64_t kSingle = 4;   // sequences up to this are taken as decode steps
constexpr int64_t kFewRows = 2;  // of so few every worker merges the parts for itself
constexpr int64_t kMostOfMany = 16;  // workers for which the keys of one of several rows are cut

constexpr float kNone = -std::numeric_limits<float>::infinity();  // the weight of a key that is not seen

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a thread of attention keeps from call to call.
enum AttentionScratch { kQueries, kValue, kAngles, kScores, kRoom, kAcc, kWhole, kFactors, kAttentionScratches };
Scratch<float>& scratch(AttentionScratch which);

// x as it is after a store in `dtype`.
void round_to(Dtype dtype, int64_t n, float* x);

// The rows of a call with as many new tokens each; memory is `arena`'s.
const CallRow* uniform_rows(int64_t batch, int64_t sequence, Arena& arena);

class AttentionCore : public AttentionJob {
 public:
  // `bases` [batch]: the place of the first new key; of one in place on a bounded cache that of the last key.
  AttentionCore(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* bases,
                Arena& arena);
  size_t width() const override;
  // dt of all keys, [batch, kv_heads, keys of a row], -inf where a key is masked.
  const float* weights() const { return weights_; }

 protected:
  // The softmax of some rows, as far as it has come: acc [rows, d], and the best score and the sum of each row.
  struct Running {
    float *acc, *best, *sums;
  };
  Running fresh(float* room, int64_t rows) const;  // room: rows * (d + 2)
  float join(float peak, float sum, const Running& to, int64_t r) const;
  void add_row(const Running& to, int64_t r, float best, float sum, const float* acc) const;
  void add_all(const Running& to, int64_t rows, const Running& from) const;
  void accumulate(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first, int64_t count,
                  const Running& softmax) const;
  void accumulate_all(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first,
                      int64_t end, const Running& softmax) const;
  void finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc, float* output) const;
  void finish_all(int64_t b, int64_t g, int64_t first, int64_t rows, const Running& softmax, float* output) const;

  // Where there are few queries, the keys of a row are taken in parts, cut between blocks.
  struct Part {
    int64_t b, g, number, parts;
  };
  int64_t keys(int64_t b) const { return base(b) + length_; }
  int64_t parts_of(int64_t b, int64_t width) const;
  int64_t all_parts(int64_t width) const;
  Part find_part(int64_t c, int64_t width) const;
  int64_t part_begin(int64_t b, int64_t parts, int64_t number) const;  // a key
  void attend_part(const Part& part, int64_t position, const float* q) const;
  Running partial(int64_t b, int64_t g, int64_t first) const;
  void merge(int64_t b, int64_t g, int64_t parts, float* output) const;
  bool leaves_parts(int64_t width) const { return io_.batch <= kFewRows && all_parts(width) > pairs(); }
  void merge_pair(int64_t pair, int64_t width) const;
  void merge_many(Team::Worker& worker) const;
  void merge_rows(int64_t width, float* output) const;

  // Queries of one kv head against keys [first, first + count): scores [rows, kSplit], not masked yet.
  virtual void score(int64_t b, int64_t g, int64_t rows, const float* q, int64_t first, int64_t count,
                     float* scores) const;
  const float* queries(int64_t b, int64_t g, int64_t first, int64_t rows) const;
  const float* cached(const void* cache, int64_t b, int64_t g, int64_t first, int64_t count, float* room) const;
  void append_key(int64_t b, int64_t g, int64_t s, const float* angles, int64_t slot) const;
  float new_weight(int64_t b, int64_t g) const;
  void read_angles(int64_t token, float* angles) const;
  const float* new_queries(int64_t b, int64_t g, const float* angles) const;

  int64_t base(int64_t b) const { return bases_[b]; }
  int64_t start(int64_t b) const;
  int64_t pairs() const { return io_.batch * kv_heads_; }
  int64_t token(int64_t b, int64_t s) const { return call_rows_[b].first + s; }
  int64_t cache_row(int64_t b, int64_t g) const { return call_rows_[b].slot * kv_heads_ + g; }
  bool is_real(int64_t b, int64_t place) const { return io_.mask == nullptr || io_.mask[b * row_ + place] != 0; }

  const AttentionParts& parts_;
  const AttentionIO& io_;
  const AttentionRows rows_;
  const Isa& loops_;
  const int64_t heads_, kv_heads_, d_, group_, length_, row_, window_;  // row_: keys of a row of present_*
  const CallRow* call_rows_;
  const int64_t* bases_;
  int64_t most_keys_ = 0, blocks_ = 0;  // of any row of the batch; blocks_: those of all rows
  bool limited_;        // a query may see more keys than it keeps
  float* weights_;
  float* thresholds_;   // [batch, kv_heads, sequence]
  int64_t* lasts_;      // as thresholds_
  float* partials_ = nullptr;  // few queries: [batch, kv_heads, blocks of the longest row, rows, d + 2]
};

}  // namespace doge
