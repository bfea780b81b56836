// What a query keeps of its keys: those with dt above a threshold, and of those equal to it the first.
#include <algorithm>
#include <functional>

#include "attention_cached.h"

namespace doge {

void CachedAttention::limit(int64_t b, int64_t g) const {
  if (parts_.config.sliding_window)
    limit_sliding(b, g);
  else
    limit_running(b, g);
}

// The thresholds of all queries of a head: running, the worst key kept on top of a heap.
void CachedAttention::limit_running(int64_t b, int64_t g) const {
  struct Key {
    float dt;
    int64_t position;
  };
  const auto better = [](const Key& x, const Key& y) { return x.dt > y.dt || (x.dt == y.dt && x.position < y.position); };
  thread_local std::vector<Key> kept;
  const int64_t pair = b * kv_heads_ + g, before = base(b);
  const float* dt = weights_ + pair * row_;
  float* threshold = thresholds_ + pair * length_;
  int64_t* last = lasts_ + pair * length_;
  const auto window = static_cast<size_t>(window_);
  kept.clear();
  for (int64_t j = 0; j <= before; j++)
    if (dt[j] > kNone) kept.push_back({dt[j], j});
  if (kept.size() > window) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(window) - 1, kept.end(), better);
    kept.resize(window);
  }
  std::make_heap(kept.begin(), kept.end(), better);  // the worst on top
  for (int64_t s = 0; s < length_; s++) {
    const int64_t j = before + s;
    if (s > 0 && dt[j] > kNone) {
      if (kept.size() < window) {
        kept.push_back({dt[j], j});
        std::push_heap(kept.begin(), kept.end(), better);
      } else if (dt[j] > kept.front().dt) {
        std::pop_heap(kept.begin(), kept.end(), better);
        kept.back() = {dt[j], j};
        std::push_heap(kept.begin(), kept.end(), better);
      }
    }
    // A window that is not full yet has dropped nobody.
    const bool full = kept.size() == window;
    threshold[s] = full ? kept.front().dt : kNone;
    last[s] = full ? kept.front().position : -1;
  }
}

// With a sliding window keys leave, so every query counts anew.
void CachedAttention::limit_sliding(int64_t b, int64_t g) const {
  thread_local std::vector<float> seen;
  const int64_t pair = b * kv_heads_ + g;
  const float* dt = weights_ + pair * row_;
  for (int64_t s = 0; s < length_; s++) {
    const int64_t position = base(b) + s;
    const int64_t begin = std::max(start(b), position - parts_.config.sliding_window + 1);
    seen.clear();
    for (int64_t j = begin; j <= position; j++)
      if (dt[j] > kNone) seen.push_back(dt[j]);
    float threshold = kNone;
    int64_t last = -1;
    if (seen.size() > static_cast<size_t>(window_)) {
      const auto nth = seen.begin() + window_ - 1;
      std::nth_element(seen.begin(), nth, seen.end(), std::greater<float>());
      threshold = *nth;
      int64_t room = window_;
      for (int64_t j = begin; j <= position; j++) room -= dt[j] > threshold;
      for (int64_t j = begin; j <= position && room > 0; j++)
        if (dt[j] == threshold) {
          last = j;
          room--;
        }
    }
    thresholds_[pair * length_ + s] = threshold;
    lasts_[pair * length_ + s] = last;
  }
}

void CachedAttention::write_keeps(Team::Worker& worker) const {
  if (io_.keep) worker.phase(pairs(), [&](int64_t c) { write_keep(c / kv_heads_, c % kv_heads_); });
}

void CachedAttention::write_keep(int64_t b, int64_t g) const {
  const int64_t pair = b * kv_heads_ + g, sliding = parts_.config.sliding_window;
  const int64_t origin = io_.cache_position ? 0 : start(b), reach = row_ - origin;
  for (int64_t s = 0; s < length_; s++) {
    const int64_t position = base(b) + s, limit = pair * length_ + s;
    const float threshold = limited_ ? thresholds_[limit] : kNone;
    const int64_t last = limited_ ? lasts_[limit] : -1;
    for (int64_t j = origin; j < row_; j++) {
      const float dt = j <= position && !(sliding && j <= position - sliding) ? weights_[pair * row_ + j] : kNone;
      io_.keep[limit * reach + j - origin] = dt > threshold || (dt == threshold && dt != kNone && j <= last);
    }
  }
}

}  // namespace doge
