// One new token on a cache in place, the common case: as few phases as can be.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "half.h"

namespace doge {

// The weight of row b's new key, as the cache holds it.
float AttentionJob::new_weight(int64_t b, int64_t g) const {
  float* value = scratch(kValue).get(static_cast<size_t>(kv_heads_ * d_));
  std::memcpy(value, value_ + b * kv_heads_ * d_, static_cast<size_t>(kv_heads_ * d_) * 4);
  round_to(io_.dtype, kv_heads_ * d_, value);
  const auto head = static_cast<size_t>(g);
  float dt = 0;
  loops_.key_weights(1, kv_heads_, d_, value, d_, parts_.dt_weight.data() + g * kv_heads_ * d_, parts_.dt_bias[head],
                     parts_.A[head], &dt);
  round_to(io_.dtype, 1, &dt);
  return dt;
}

// The weight of row b's new key, into the cache and into weights_.
void AttentionJob::weigh_new(int64_t b, int64_t g) const {
  const int64_t at = (b * kv_heads_ + g) * row_, slot = base(b);
  float* dt = weights_ + at + slot;
  *dt = new_weight(b, g);
  const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at) * size;
  if (io_.past_dt != io_.present_dt)
    std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                static_cast<size_t>(row_) * size);
  write_floats(io_.dtype, dt, 1, io_.present_dt, at + slot);
  if (io_.mask[b * row_ + slot] == 0) *dt = kNone;
}

// The weights of the cached keys [first, end), before the new one.
void AttentionJob::read_weights(int64_t b, int64_t g, int64_t first, int64_t end) const {
  const int64_t at = (b * kv_heads_ + g) * row_, *mask = io_.mask + b * row_;
  float* dt = weights_ + at;
  if (end > first) read_floats(io_.dtype, io_.past_dt, at + first, end - first, dt + first);
  for (int64_t j = first; j < end; j++)
    if (mask[j] == 0) dt[j] = kNone;
}

// All that one kv head needs where its window is full: who is in it takes all weights.
void AttentionJob::step(int64_t b, int64_t g) const {
  append(b, g, 0, 1);
  weigh_new(b, g);
  read_weights(b, g, 0, base(b));
  limit(b, g);
}

// One split of one kv head's keys where no key is left out, on its own: the queries are rotated by everyone who
// needs them, and the last split has the new key.
void AttentionJob::step_part(int64_t b, int64_t g, int64_t split) const {
  const int64_t keys = base(b) + 1, first = split * split_size_, count = std::min(split_size_, keys - first);
  const Running softmax = fresh_split(b, g, split);
  const int64_t lowest = parts_.config.sliding_window ? keys - parts_.config.sliding_window : 0;
  const bool seen = count > 0 && first + count > lowest, newest = count > 0 && first + count == keys;
  if (!seen && !newest) return;
  float* angles = scratch(kAngles).get(static_cast<size_t>(d_));
  read_floats(io_.dtype, io_.cos, b * d_ / 2, d_ / 2, angles);
  read_floats(io_.dtype, io_.sin, b * d_ / 2, d_ / 2, angles + d_ / 2);
  if (newest) {
    append_key(b, g, 0, angles, keys - 1);
    weigh_new(b, g);
  }
  read_weights(b, g, first, newest ? keys - 1 : first + count);
  attend_alone(b, g, keys - 1, angles, first, count, softmax);
}

// A step's queries of one kv head, at `position`, over keys [first, first + count), on nobody else's word.
void AttentionJob::attend_alone(int64_t b, int64_t g, int64_t position, const float* angles, int64_t first,
                                int64_t count, const Running& softmax) const {
  float* query = scratch(kQueries).get(static_cast<size_t>(group_ * d_));
  for (int64_t h = 0; h < group_; h++) {
    const float* from = query_ + (b * heads_ + g * group_ + h) * d_;
    loops_.rms_norm(from, parts_.q_norm.data(), query + h * d_, d_, parts_.config.epsilon);
    loops_.rotate(query + h * d_, angles, angles + d_ / 2, d_);
  }
  accumulate(b, g, group_, position, query, first, count, softmax);
  if (splits_ == 1) finish_all(b, g, 0, group_, softmax);
}

void AttentionJob::merge_all(float* output) const {
  if (laid_) return inner().merge_all(output);
  for (int64_t pair = 0; pair < io_.batch * kv_heads_; pair++) merge(pair / kv_heads_, pair % kv_heads_, output);
}

}  // namespace doge
