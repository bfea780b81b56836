// Attention on a growing or static cache: new keys are written, all weights computed, and the queries attend.
#pragma once

#include "attention_core.h"

namespace doge {

class CachedAttention : public AttentionCore {
 public:
  using AttentionCore::AttentionCore;
  void run(Team::Worker& worker) const override;

 protected:
  // From thresholds to outputs.
  virtual void attend(Team::Worker& worker) const = 0;
  void append(int64_t b, int64_t g, int64_t first, int64_t count) const;
  void limit(int64_t b, int64_t g) const;
  void write_keeps(Team::Worker& worker) const;
  void weigh_new_keys(Team::Worker& worker) const;

 private:
  void copy_past(int64_t chunk) const;
  void weigh(int64_t b, int64_t first, int64_t count) const;
  void keep_static(int64_t b) const;
  void limit_running(int64_t b, int64_t g) const;
  void limit_sliding(int64_t b, int64_t g) const;
  void write_keep(int64_t b, int64_t g) const;
};

// Up to kSingle new positions: the keys in parts, whose softmaxes are merged.
class FewQueries : public CachedAttention {
 public:
  using CachedAttention::CachedAttention;

 protected:
  void attend(Team::Worker& worker) const override;
};

// Any number of new positions: tiles of queries over keys that are transposed into panels once.
class Prefill : public CachedAttention {
 public:
  Prefill(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* bases,
          Arena& arena);
  size_t width() const override;

 protected:
  void attend(Team::Worker& worker) const override;
  void score(int64_t b, int64_t g, int64_t rows, const float* q, int64_t first, int64_t count,
             float* scores) const override;

 private:
  void transpose_keys(int64_t b, int64_t g, int64_t block) const;
  void attend_tile(int64_t b, int64_t g, int64_t tile) const;

  int64_t tile_rows_, tiles_, blocks_;  // tile_rows_: positions of a tile
  float* panels_;                       // [batch, kv_heads, blocks, d, 64]
};

// The job of a growing or static cache. bases [batch]: the position of the first new key.
std::unique_ptr<AttentionCore> make_cached_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, const int64_t* bases, Arena& arena);

}  // namespace doge
