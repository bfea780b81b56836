// The products and the softmax: a few queries against all keys in splits, or tiles of many.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention.h"

namespace doge {
namespace {

const float kNone = -std::numeric_limits<float>::infinity();

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[4];
  return memory[which];
}
enum { kTiles, kScores, kRoom, kAcc };

}  // namespace

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

// One pass of the softmax over keys [first, first + count) for `rows` queries q [rows, d]; row r is of
// position positions[r]. best, sums and acc [rows, d] go on from where they are.
void AttentionJob::accumulate(int64_t b, int64_t g, int64_t rows, const int64_t* positions, const float* q,
                              int64_t first, int64_t count, float* best, float* sums, float* acc) const {
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
    float* row = scores + r * kSplit;
    const int64_t end = std::min(count, positions[r] + 1 - first);
    const int64_t begin = sliding ? std::max<int64_t>(0, positions[r] - sliding + 1 - first) : 0;
    const int64_t limit = pair * length_ + positions[r] - base(b);
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

void AttentionJob::decode(int64_t b, int64_t g, int64_t split) const {
  const int64_t rows = length_ * group_, first = split * split_size_;
  const int64_t count = std::min(split_size_, base(b) + length_ - first);
  const bool direct = splits_ == 1;
  float* acc = direct ? scratch(kAcc).get(static_cast<size_t>(rows * (d_ + 2)))
                      : partials_ + ((b * kv_heads_ + g) * splits_ + split) * rows * (d_ + 2);
  float *best = acc + rows * d_, *sums = best + rows;
  std::fill(acc, acc + rows * d_, 0.0f);
  std::fill(best, best + rows, kNone);
  std::fill(sums, sums + rows, 0.0f);
  const int64_t lowest = parts_.config.sliding_window ? base(b) - parts_.config.sliding_window + 1 : 0;
  if (count > 0 && first + count > lowest) {
    float* q = scratch(kTiles).get(static_cast<size_t>(rows * d_));
    int64_t positions[kSingle * 64];
    std::vector<int64_t> more;
    int64_t* position = positions;
    if (rows > kSingle * 64) {
      more.resize(static_cast<size_t>(rows));
      position = more.data();
    }
    for (int64_t r = 0; r < rows; r++) {
      const int64_t s = r / group_, head = g * group_ + r % group_;
      position[r] = base(b) + s;
      std::memcpy(q + r * d_, query_ + ((b * length_ + s) * heads_ + head) * d_, static_cast<size_t>(d_) * 4);
    }
    accumulate(b, g, rows, position, q, first, count, best, sums, acc);
  }
  if (direct)
    for (int64_t r = 0; r < rows; r++) finish(b, g, r, best[r], sums[r], acc + r * d_, output_);
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
  float* q = scratch(kTiles).get(static_cast<size_t>(rows * d_));
  float* acc = scratch(kAcc).get(static_cast<size_t>(rows * (d_ + 2)));
  float *best = acc + rows * d_, *sums = best + rows;
  thread_local std::vector<int64_t> position;
  position.resize(static_cast<size_t>(rows));
  std::fill(acc, acc + rows * d_, 0.0f);
  std::fill(best, best + rows, kNone);
  std::fill(sums, sums + rows, 0.0f);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = first + r / group_, head = g * group_ + r % group_;
    position[static_cast<size_t>(r)] = base(b) + s;
    std::memcpy(q + r * d_, query_ + ((b * length_ + s) * heads_ + head) * d_, static_cast<size_t>(d_) * 4);
  }
  const int64_t end = base(b) + first + positions;
  const int64_t sliding = parts_.config.sliding_window;
  const int64_t lowest = sliding ? std::max<int64_t>(0, base(b) + first - sliding + 1) : 0;
  for (int64_t j = lowest / kSplit * kSplit; j < end; j += kSplit)
    accumulate(b, g, rows, position.data(), q, j, std::min(kSplit, end - j), best, sums, acc);
  for (int64_t r = 0; r < rows; r++) finish(b, g, first * group_ + r, best[r], sums[r], acc + r * d_, output_);
}

}  // namespace doge
