// Several tokens at once on a bounded cache that drops keys meanwhile, or with padding, or written anew.
//
// The places that single tokens would take are found first, one after another: an empty one, that of the worst key, or
// none. A place then has one key after another, its occupants, and all of them lie side by side in the order of places
// and, within one, of time. A query weighs the occupant of each place in its turn; the others have p = 0. So outputs
// and cache are those of single tokens, to the bit.
#pragma once

#include "attention_cached.h"

namespace doge {

// Old and new keys of a call, one after another, as a static cache of this call alone.
struct CallCache {
  CallCache(const AttentionParts& parts, const AttentionIO& io, const int64_t* used, Arena& arena);
  AttentionIO call_io;
};

class BoundedEvict : private CallCache, public CachedAttention {
 public:
  // used [batch]: the places in use before the call.
  BoundedEvict(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* used,
               Arena& arena);
  void run(Team::Worker& worker) const override;
  size_t width() const override;

 protected:
  void attend(Team::Worker&) const override {}

 private:
  // Of one pair of row and kv head. The keys of the call are numbered as they lie in its cache.
  struct Occupants {
    int64_t* begins;  // [places + 1]: the occupants of a place, in `keys`
    int64_t* keys;    // [row]
    int64_t* places;  // [length]: where a new key goes; -1: nowhere
    int64_t* at;      // [length]: which occupant it is
    int64_t* in_use;  // [length]: places, with it
    int64_t* count;   // of places that are in use at the end
    float *panels, *values, *dt;  // of the occupants: [blocks, d, 64], [row, d], [row]
  };
  Occupants occupants(int64_t pair) const;
  int64_t position(int64_t b, int64_t g, int64_t key) const;
  void gather(int64_t b, int64_t g) const;
  void arrange(int64_t b, int64_t g) const;
  void lay_out(int64_t b, int64_t g, int64_t block) const;
  void attend_tile(int64_t b, int64_t g, int64_t tile) const;
  void soften(const Occupants& own, int64_t tile, int64_t rows, int64_t block, int64_t* alive, float* scores,
              int64_t stride, float* factors, const Running& softmax) const;
  void keep(int64_t b, int64_t g) const;

  const AttentionIO& whole_;  // the call's own io
  const int64_t* used_;
  int64_t tile_rows_, tiles_, panels_, places_;
  int64_t* numbers_;
  float* floats_;
};

}  // namespace doge
