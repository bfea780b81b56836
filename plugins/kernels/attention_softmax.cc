// The softmax over some of the keys, and what becomes of it: the order that attention_core.h speaks of.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_core.h"

namespace doge {

AttentionCore::Running AttentionCore::fresh(float* room, int64_t rows) const {
  const Running softmax{room, room + rows * d_, room + rows * (d_ + 1)};
  std::fill(softmax.acc, softmax.best, 0.0f);
  std::fill(softmax.best, softmax.sums, kNone);
  std::fill(softmax.sums, softmax.sums + rows, 0.0f);
  return softmax;
}

// Prepares row r of `to` for one more softmax, of the best score `peak` and the sum `sum`: brings it to the new best
// score and adds the sum. Returns what the other's values are multiplied with before they are added.
float AttentionCore::join(float peak, float sum, const Running& to, int64_t r) const {
  float &best = to.best[r], &total = to.sums[r], factor = 1.0f;
  if (peak > best) {
    if (best != kNone) {
      const float less = std::exp(best - peak);
      total *= less;
      loops_.scale(d_, to.acc + r * d_, less);
    }
    best = peak;
  } else if (peak < best) {
    factor = std::exp(peak - best);
    sum *= factor;
  }
  total += sum;
  return factor;
}

// One row's softmax of some keys, added to that of the keys before.
void AttentionCore::add_row(const Running& to, int64_t r, float best, float sum, const float* acc) const {
  if (best == kNone) return;
  const float factor = join(best, sum, to, r);
  loops_.axpy(d_, factor, acc, to.acc + r * d_);
}

void AttentionCore::add_all(const Running& to, int64_t rows, const Running& from) const {
  for (int64_t r = 0; r < rows; r++) add_row(to, r, from.best[r], from.sums[r], from.acc + r * d_);
}

// The queries of one kv head's group at positions [first, first + rows / group) of the call, one after another.
const float* AttentionCore::queries(int64_t b, int64_t g, int64_t first, int64_t rows) const {
  float* q = scratch(kQueries).get(static_cast<size_t>(rows * d_));
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = first + r / group_, head = g * group_ + r % group_;
    std::memcpy(q + r * d_, rows_.query + (token(b, s) * heads_ + head) * d_, static_cast<size_t>(d_) * 4);
  }
  return q;
}

void AttentionCore::score(int64_t b, int64_t g, int64_t rows, const float* q, int64_t first, int64_t count,
                          float* scores) const {
  float* room = io_.dtype == Dtype::float32 ? nullptr : scratch(kRoom).get(static_cast<size_t>(count * d_));
  const float* keys = cached(io_.present_key, b, g, first, count, room);
  loops_.dots(rows, count, d_, q, d_, keys, parts_.config.scale, scores, kSplit);
}

// Adds the blocks of keys [first, first + count), which are of one split and begin with a block, to `softmax`, for
// `rows` queries q [rows, d], `group_` of them of each position from `position` on.
void AttentionCore::accumulate(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first,
                              int64_t count, const Running& softmax) const {
  const int64_t pair = b * kv_heads_ + g, sliding = parts_.config.sliding_window;
  float* scores = scratch(kScores).get(static_cast<size_t>(rows * kSplit));
  score(b, g, rows, q, first, count, scores);
  float* room = io_.dtype == Dtype::float32 ? nullptr : scratch(kRoom).get(static_cast<size_t>(count * d_));
  const float* values = cached(io_.present_value, b, g, first, count, room);
  float* factors = scratch(kFactors).get(static_cast<size_t>(rows));
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t block = first + at, size = std::min(kBlock, count - at);
    const float* dt = weights_ + pair * row_ + block;
    bool any = false;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t own = position + r / group_;
      float* row = scores + r * kSplit + at;
      const int64_t end = std::min(size, own + 1 - block);
      const int64_t begin = sliding ? std::max<int64_t>(0, own - sliding + 1 - block) : 0;
      const int64_t limit = pair * length_ + own - base(b);
      const float threshold = limited_ ? thresholds_[limit] : kNone;
      const int64_t last = limited_ ? lasts_[limit] - block - begin : -1;
      float peak = kNone;
      if (end > begin) peak = loops_.apply_mask(end - begin, row + begin, dt + begin, threshold, last);
      factors[r] = 0;
      if (peak == kNone) {
        std::fill(row, row + size, 0.0f);
        continue;
      }
      any = true;
      const float sum = loops_.exponentials(end - begin, row + begin, peak);
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + size, 0.0f);
      factors[r] = join(peak, sum, softmax, r);
    }
    if (any) loops_.weighted_sum(rows, size, d_, scores + at, kSplit, factors, values + at * d_, d_, softmax.acc, d_);
  }
}

// The same for keys [first, end), `first` where a split begins.
void AttentionCore::accumulate_all(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first,
                                   int64_t end, const Running& softmax) const {
  float* room = scratch(kWhole).get(static_cast<size_t>(rows * (d_ + 2)));
  for (int64_t at = first; at < end; at += kSplit) {
    const Running split = fresh(room, rows);
    accumulate(b, g, rows, position, q, at, std::min(kSplit, end - at), split);
    add_all(softmax, rows, split);
  }
}

// Writes one query's output: the weighted mean, or the plain mean where it saw no key at all.
void AttentionCore::finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc, float* output) const {
  const int64_t s = row / group_, head = g * group_ + row % group_;
  float* to = output + (token(b, s) * heads_ + head) * d_;
  if (best == kNone) {
    std::fill(acc, acc + d_, 0.0f);
    const int64_t first = start(b), end = keys(b);
    float* room = scratch(kRoom).get(static_cast<size_t>(d_));
    for (int64_t j = first; j < end; j++) loops_.axpy(d_, 1.0f, cached(io_.present_value, b, g, j, 1, room), acc);
    sum = static_cast<float>(end - first);
  }
  for (int64_t i = 0; i < d_; i++) to[i] = acc[i] / sum;
}

void AttentionCore::finish_all(int64_t b, int64_t g, int64_t first, int64_t rows, const Running& softmax,
                               float* output) const {
  for (int64_t r = 0; r < rows; r++)
    finish(b, g, first + r, softmax.best[r], softmax.sums[r], softmax.acc + r * d_, output);
}

}  // namespace doge
