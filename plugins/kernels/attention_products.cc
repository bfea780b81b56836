// The products and the softmax: a few queries against all keys in splits, or tiles of many.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"

namespace doge {

// Keys [64 * block, ...) as a panel [d][64] for gemm_f32; zeros where there are no more.
void AttentionJob::transpose_keys(int64_t b, int64_t g, int64_t block) const {
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

AttentionJob::Running AttentionJob::fresh(float* room, int64_t rows) const {
  const Running softmax{room, room + rows * d_, room + rows * (d_ + 1)};
  std::fill(softmax.acc, softmax.best, 0.0f);
  std::fill(softmax.best, softmax.sums, kNone);
  std::fill(softmax.sums, softmax.sums + rows, 0.0f);
  return softmax;
}

// Where the softmax of one split goes: into `partials_`, or, where there is but one, nowhere in particular.
AttentionJob::Running AttentionJob::fresh_split(int64_t b, int64_t g, int64_t split) const {
  const int64_t rows = length_ * group_, size = rows * (d_ + 2);
  return fresh(splits_ == 1 ? scratch(kAcc).get(static_cast<size_t>(size))
                            : partials_ + ((b * kv_heads_ + g) * splits_ + split) * size,
               rows);
}

// The queries of one kv head's group at positions [first, first + rows / group) of the call, one after another.
const float* AttentionJob::queries(int64_t b, int64_t g, int64_t first, int64_t rows) const {
  float* q = scratch(kQueries).get(static_cast<size_t>(rows * d_));
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = first + r / group_, head = g * group_ + r % group_;
    std::memcpy(q + r * d_, query_ + ((b * length_ + s) * heads_ + head) * d_, static_cast<size_t>(d_) * 4);
  }
  return q;
}

// One pass of the softmax over keys [first, first + count) for `rows` queries q [rows, d], `group_` of them of
// each position from `position` on. `softmax` goes on from where it is.
void AttentionJob::accumulate(int64_t b, int64_t g, int64_t rows, int64_t position, const float* q, int64_t first,
                              int64_t count, const Running& softmax) const {
  const auto& [acc, best, sums] = softmax;
  const int64_t pair = b * kv_heads_ + g, sliding = parts_.config.sliding_window;
  float* scores = scratch(kScores).get(static_cast<size_t>(rows * kSplit));
  if (single_) {
    float* room = io_.dtype == Dtype::float32 ? nullptr : scratch(kRoom).get(static_cast<size_t>(count * d_));
    const float* keys = cached(io_.present_key, b, g, first, count, room);
    loops_.dots(rows, count, d_, q, d_, keys, parts_.config.scale, scores, kSplit);
  } else {
    for (int64_t j = 0; j < count; j += kPanel) {
      const float* panel = panels_ + (pair * blocks_ + (first + j) / kPanel) * d_ * kPanel;
      loops_.gemm_f32(rows, d_, q, d_, panel, kPanel, scores + j, kSplit);
    }
    for (int64_t r = 0; r < rows; r++) loops_.scale(count, scores + r * kSplit, parts_.config.scale);
  }
  const float* dt = weights_ + pair * row_ + first;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t own = position + r / group_;
    float* row = scores + r * kSplit;
    const int64_t end = std::min(count, own + 1 - first);
    const int64_t begin = sliding ? std::max<int64_t>(0, own - sliding + 1 - first) : 0;
    const int64_t limit = pair * length_ + own - base(b);
    const float threshold = limited_ ? thresholds_[limit] : kNone;
    const int64_t last = limited_ ? lasts_[limit] - first - begin : -1;
    float peak = kNone;
    if (end > begin) peak = loops_.apply_mask(end - begin, row + begin, dt + begin, threshold, last);
    if (peak == kNone) {
      std::fill(row, row + count, 0.0f);
      continue;
    }
    if (peak > best[r]) {
      const float factor = best[r] == kNone ? 0.0f : std::exp(best[r] - peak);
      sums[r] *= factor;
      loops_.scale(d_, acc + r * d_, factor);
      best[r] = peak;
    }
    sums[r] += loops_.exponentials(end - begin, row + begin, best[r]);
    std::fill(row, row + begin, 0.0f);
    std::fill(row + end, row + count, 0.0f);
  }
  float* room = io_.dtype == Dtype::float32 ? nullptr : scratch(kRoom).get(static_cast<size_t>(count * d_));
  const float* values = cached(io_.present_value, b, g, first, count, room);
  loops_.weighted_sum(rows, count, d_, scores, kSplit, values, d_, acc, d_);
}

// Writes one query's output: the weighted mean, or the plain mean where it saw no key at all.
void AttentionJob::finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc, float* output) const {
  const int64_t s = row / group_, head = g * group_ + row % group_;
  float* to = output + ((b * length_ + s) * heads_ + head) * d_;
  if (best == kNone) {
    std::fill(acc, acc + d_, 0.0f);
    const int64_t first = start(b), end = base(b) + length_;
    float* room = scratch(kRoom).get(static_cast<size_t>(d_));
    for (int64_t j = first; j < end; j++) loops_.axpy(d_, 1.0f, cached(io_.present_value, b, g, j, 1, room), acc);
    sum = static_cast<float>(end - first);
  }
  for (int64_t i = 0; i < d_; i++) to[i] = acc[i] / sum;
}

void AttentionJob::finish_all(int64_t b, int64_t g, int64_t first, int64_t rows, const Running& softmax) const {
  for (int64_t r = 0; r < rows; r++)
    finish(b, g, first + r, softmax.best[r], softmax.sums[r], softmax.acc + r * d_, output_);
}

void AttentionJob::decode(int64_t b, int64_t g, int64_t split) const {
  const int64_t rows = length_ * group_, first = split * split_size_;
  const int64_t count = std::min(split_size_, base(b) + length_ - first);
  const Running softmax = fresh_split(b, g, split);
  const int64_t lowest = parts_.config.sliding_window ? base(b) - parts_.config.sliding_window + 1 : 0;
  if (count > 0 && first + count > lowest)
    accumulate(b, g, rows, base(b), queries(b, g, 0, rows), first, count, softmax);
  if (splits_ == 1) finish_all(b, g, 0, rows, softmax);
}

void AttentionJob::merge(int64_t b, int64_t g, float* output) const {
  const int64_t rows = length_ * group_, size = rows * (d_ + 2);
  const float* partials = partials_ + (b * kv_heads_ + g) * splits_ * size;
  float* acc = scratch(kAcc).get(static_cast<size_t>(d_));
  for (int64_t r = 0; r < rows; r++) {
    float best = kNone, sum = 0;
    for (int64_t p = 0; p < splits_; p++) best = std::max(best, partials[p * size + rows * d_ + r]);
    std::fill(acc, acc + d_, 0.0f);
    for (int64_t p = 0; p < splits_ && best != kNone; p++) {
      const float peak = partials[p * size + rows * d_ + r];
      if (peak == kNone) continue;
      const float factor = std::exp(peak - best);
      sum += factor * partials[p * size + rows * (d_ + 1) + r];
      loops_.axpy(d_, factor, partials + p * size + r * d_, acc);
    }
    finish(b, g, r, best, sum, acc, output);
  }
}

void AttentionJob::prefill(int64_t b, int64_t g, int64_t tile) const {
  const int64_t first = tile * tile_rows_, positions = std::min(tile_rows_, length_ - first);
  const int64_t rows = positions * group_;
  const float* q = queries(b, g, first, rows);
  const Running softmax = fresh(scratch(kAcc).get(static_cast<size_t>(rows * (d_ + 2))), rows);
  const int64_t end = base(b) + first + positions;
  const int64_t sliding = parts_.config.sliding_window;
  const int64_t lowest = sliding ? std::max<int64_t>(0, base(b) + first - sliding + 1) : 0;
  for (int64_t j = lowest / kSplit * kSplit; j < end; j += kSplit)
    accumulate(b, g, rows, base(b) + first, q, j, std::min(kSplit, end - j), softmax);
  finish_all(b, g, first * group_, rows, softmax);
}

}  // namespace doge
