// The bounded cache: at most keep_window_size keys a kv head, and which of them is worst needs no sorting.
//
// One token goes into the buffers where they are: into the next empty place, or, where there is none, into the place
// of the worst key if it is better than that. Several tokens that find empty places are those of a static cache; others
// go one after another as single ones would, and every query sees what was there in its turn (attention_evict.h).
#pragma once

#include "attention_core.h"

namespace doge {

// One real token, in place.
class BoundedStep : public AttentionCore {
 public:
  // used [batch]: the slots in use before the call.
  BoundedStep(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* used,
              Arena& arena);
  void run(Team::Worker& worker) const override;
  bool in_parts(int64_t width) const override { return leaves_parts(width); }
  void merge_all(int64_t width, float* output) const override { merge_rows(width, output); }
  void commit() const override;

 private:
  // Where a new key goes (-1: nowhere), and its weight.
  struct Target {
    int64_t slot;
    float dt;
  };
  Target find_target(int64_t b, int64_t g) const;
  void step(const Part& part, const Target& target) const;

  const int64_t* used_;
  Target* targets_;  // [batch, kv_heads]
};

// Tokens that all find empty places: the buffers are a static cache then.
class BoundedFill : public AttentionJob {
 public:
  BoundedFill(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* used,
              Arena& arena);
  void run(Team::Worker& worker) const override { job_->run(worker); }
  bool in_parts(int64_t width) const override { return job_->in_parts(width); }
  void merge_all(int64_t width, float* output) const override { job_->merge_all(width, output); }
  void commit() const override;
  size_t width() const override { return job_->width(); }

 private:
  const AttentionIO& io_;
  const int64_t kv_heads_;
  const int64_t* used_;
  AttentionIO static_io_;
  std::unique_ptr<AttentionCore> job_;
};

// The job of a bounded cache.
std::unique_ptr<AttentionJob> make_bounded_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, Arena& arena);

}  // namespace doge
