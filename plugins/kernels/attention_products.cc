// The products: a few queries against all keys in splits, or tiles of many.
#include <algorithm>

#include "attention_cached.h"

namespace doge {
namespace {

constexpr int64_t kTile = 24;  // query rows of a prefill tile, about

}  // namespace

void FewQueries::attend(Team::Worker& worker) const {
  const int64_t width = worker.width(), parts = all_parts(width);
  worker.phase(parts, [&](int64_t c) {
    const Part part = find_part(c, width);
    attend_part(part, base(part.b), queries(part.b, part.g, 0, length_ * group_));
  });
  if (parts > pairs())
    worker.phase(pairs(), [&](int64_t c) { merge_pair(c, width); });
  write_keeps(worker);
}

Prefill::Prefill(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, const int64_t* bases,
                 Arena& arena)
    : CachedAttention(parts, io, rows, bases, arena), tile_rows_(std::max<int64_t>(1, kTile / group_)),
      tiles_(ceil_div(length_, tile_rows_)), blocks_(ceil_div(most_keys_, kPanel)),
      panels_(arena.take(pairs() * blocks_ * d_ * kPanel)) {}

size_t Prefill::width() const { return static_cast<size_t>(std::max<int64_t>(2, pairs() * tiles_)); }

void Prefill::attend(Team::Worker& worker) const {
  worker.phase(pairs() * blocks_,
               [&](int64_t c) { transpose_keys(c / blocks_ / kv_heads_, c / blocks_ % kv_heads_, c % blocks_); });
  // Each worker has the rows that it has in a layer's other phases. The last of them see the most keys and come
  // first, so that no thread ends alone with one.
  const int64_t strip = ceil_div(tiles_, worker.width());
  worker.phase(pairs() * tiles_, [&](int64_t c) {
    const int64_t tile = c / pairs(), begin = tile / strip * strip, end = std::min(begin + strip, tiles_);
    attend_tile(c % pairs() / kv_heads_, c % pairs() % kv_heads_, end - 1 - (tile - begin));
  });
  write_keeps(worker);
}

// Keys [64 * block, ...) as a panel [d][64] for dots_panel; zeros where there are no more.
void Prefill::transpose_keys(int64_t b, int64_t g, int64_t block) const {
  const int64_t first = block * kPanel, count = std::min(kPanel, base(b) + length_ - first);
  float* panel = panels_ + ((b * kv_heads_ + g) * blocks_ + block) * d_ * kPanel;
  if (count <= 0) return;
  float* room = io_.dtype == Dtype::float32 ? nullptr : scratch(kRoom).get(static_cast<size_t>(count * d_));
  const float* keys = cached(io_.present_key, b, g, first, count, room);
  for (int64_t i = 0; i < d_; i++) {
    for (int64_t j = 0; j < count; j++) panel[i * kPanel + j] = keys[j * d_ + i];
    for (int64_t j = count; j < kPanel; j++) panel[i * kPanel + j] = 0;
  }
}

void Prefill::score(int64_t b, int64_t g, int64_t rows, const float* q, int64_t first, int64_t count,
                    float* scores) const {
  for (int64_t j = 0; j < count; j += kPanel) {
    const float* panel = panels_ + ((b * kv_heads_ + g) * blocks_ + (first + j) / kPanel) * d_ * kPanel;
    loops_.dots_panel(rows, d_, q, d_, panel, parts_.config.scale, scores + j, kSplit);
  }
}

void Prefill::attend_tile(int64_t b, int64_t g, int64_t tile) const {
  const int64_t first = tile * tile_rows_, positions = std::min(tile_rows_, length_ - first);
  const int64_t rows = positions * group_;
  const float* q = queries(b, g, first, rows);
  const Running softmax = fresh(scratch(kAcc).get(static_cast<size_t>(rows * (d_ + 2))), rows);
  const int64_t end = base(b) + first + positions;
  const int64_t sliding = parts_.config.sliding_window;
  const int64_t lowest = sliding ? std::max<int64_t>(0, base(b) + first - sliding + 1) : 0;
  accumulate_all(b, g, rows, base(b) + first, q, lowest / kSplit * kSplit, end, softmax);
  finish_all(b, g, first * group_, rows, softmax, rows_.output);
}

}  // namespace doge
