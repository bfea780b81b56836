// A row's keys in parts, where there are few queries and so nothing else to share out: cut between blocks, so that no
// sum depends on how many workers there are.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "attention_core.h"

namespace doge {

// In how many parts a team takes the keys of row b: of one row as many that all workers have the same, of several
// rows about two for each worker.
int64_t AttentionCore::parts_of(int64_t b, int64_t width) const {
  const int64_t blocks = ceil_div(keys(b), kBlock);
  if (io_.batch == 1) return std::min(blocks, width / std::gcd(width, kv_heads_));
  return std::clamp<int64_t>(blocks * 2 * std::min(width, kMostOfMany) / (blocks_ * kv_heads_), 1, blocks);
}

int64_t AttentionCore::all_parts(int64_t width) const {
  int64_t parts = 0;
  for (int64_t b = 0; b < io_.batch; b++) parts += parts_of(b, width);
  return parts * kv_heads_;
}

AttentionCore::Part AttentionCore::find_part(int64_t c, int64_t width) const {
  for (int64_t b = 0;; b++) {
    const int64_t parts = parts_of(b, width);
    if (c < parts * kv_heads_) return {b, c / parts, c % parts, parts};
    c -= parts * kv_heads_;
  }
}

int64_t AttentionCore::part_begin(int64_t b, int64_t parts, int64_t number) const {
  const int64_t blocks = ceil_div(keys(b), kBlock);
  return std::min(blocks * number / parts * kBlock, keys(b));
}

// Where the softmax goes that begins with key `first` of a pair: that of a split which is whole in one part, or of a
// single block.
AttentionCore::Running AttentionCore::partial(int64_t b, int64_t g, int64_t first) const {
  const int64_t rows = length_ * group_, blocks = ceil_div(most_keys_, kBlock);
  float* room = partials_ + ((b * kv_heads_ + g) * blocks + first / kBlock) * rows * (d_ + 2);
  return {room, room + rows * d_, room + rows * (d_ + 1)};
}

// The queries q of a row, all of them, from `position` on, over the keys of one part.
void AttentionCore::attend_part(const Part& part, int64_t position, const float* q) const {
  const int64_t rows = length_ * group_, sliding = parts_.config.sliding_window, all = keys(part.b);
  const int64_t lowest = sliding ? std::max<int64_t>(0, position - sliding + 1) : 0;
  if (part.parts == 1) {
    const Running softmax = fresh(scratch(kAcc).get(static_cast<size_t>(rows * (d_ + 2))), rows);
    accumulate_all(part.b, part.g, rows, position, q, lowest / kSplit * kSplit, all, softmax);
    finish_all(part.b, part.g, 0, rows, softmax, rows_.output);
    return;
  }
  const int64_t begin = part_begin(part.b, part.parts, part.number), end = part_begin(part.b, part.parts, part.number + 1);
  for (int64_t at = begin; at < end;) {
    const int64_t whole = std::min(at + kSplit, all);
    const int64_t next = at % kSplit == 0 && whole <= end ? whole : std::min(at + kBlock, end);
    const Running softmax = partial(part.b, part.g, at);
    fresh(softmax.acc, rows);
    if (next > lowest) accumulate(part.b, part.g, rows, position, q, at, next - at, softmax);
    at = next;
  }
}

// What the parts of one pair come to.
void AttentionCore::merge(int64_t b, int64_t g, int64_t parts, float* output) const {
  const int64_t rows = length_ * group_, all = keys(b);
  const auto size = static_cast<size_t>(rows * (d_ + 2));
  const Running total = fresh(scratch(kAcc).get(size), rows);
  int64_t number = 0;
  for (int64_t at = 0; at < all; at += kSplit) {
    const int64_t whole = std::min(at + kSplit, all);
    while (part_begin(b, parts, number + 1) <= at) number++;
    if (whole <= part_begin(b, parts, number + 1)) {
      add_all(total, rows, partial(b, g, at));
      continue;
    }
    const Running split = fresh(scratch(kWhole).get(size), rows);
    for (int64_t block = at; block < whole; block += kBlock) add_all(split, rows, partial(b, g, block));
    add_all(total, rows, split);
  }
  finish_all(b, g, 0, rows, total, output);
}

// Those of one pair, where it is in parts.
void AttentionCore::merge_pair(int64_t pair, int64_t width) const {
  const int64_t parts = parts_of(pair / kv_heads_, width);
  if (parts > 1) merge(pair / kv_heads_, pair % kv_heads_, parts, rows_.output);
}

// Merges what is in parts, where that is too much for every worker to do it for itself.
void AttentionCore::merge_many(Team::Worker& worker) const {
  const int64_t width = worker.width();
  if (io_.batch <= kFewRows || all_parts(width) == pairs()) return;
  worker.phase(pairs(), [&](int64_t c) { merge_pair(c, width); });
}

// The outputs of all rows; those of a row in one part are there.
void AttentionCore::merge_rows(int64_t width, float* output) const {
  const int64_t own = heads_ * d_;
  for (int64_t b = 0; b < io_.batch; b++) {
    const int64_t parts = parts_of(b, width);
    if (parts > 1)
      for (int64_t g = 0; g < kv_heads_; g++) merge(b, g, parts, output);
    else if (output != rows_.output)
      std::memcpy(output + token(b, 0) * own, rows_.output + token(b, 0) * own, static_cast<size_t>(length_ * own) * 4);
  }
}

}  // namespace doge
