#include "attention_step.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace doge {

void StepAttention::run(Team::Worker& worker) const {
  if (keeps_all()) {
    const int64_t width = worker.width();
    worker.phase(all_parts(width), [&](int64_t c) { step_part(find_part(c, width)); });
    merge_many(worker);
    return;
  }
  worker.phase(pairs(), [&](int64_t c) { step(c / kv_heads_, c % kv_heads_); });
  attend(worker);
}

// The weight of row b's new key, into the cache and into weights_.
void StepAttention::weigh_new(int64_t b, int64_t g) const {
  const int64_t at = cache_row(b, g) * row_, slot = base(b);
  float* dt = weights_ + (b * kv_heads_ + g) * row_ + slot;
  *dt = new_weight(b, g);
  const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at) * size;
  if (io_.past_dt != io_.present_dt)
    std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                static_cast<size_t>(row_) * size);
  write_floats(io_.dtype, dt, 1, io_.present_dt, at + slot);
  if (!is_real(b, slot)) *dt = kNone;
}

// The weights of the cached keys [first, end), before the new one.
void StepAttention::read_weights(int64_t b, int64_t g, int64_t first, int64_t end) const {
  float* dt = weights_ + (b * kv_heads_ + g) * row_;
  if (end > first) read_floats(io_.dtype, io_.past_dt, cache_row(b, g) * row_ + first, end - first, dt + first);
  for (int64_t j = first; io_.mask && j < end; j++)
    if (!is_real(b, j)) dt[j] = kNone;
}

// All that one kv head needs where its window is full: who is in it takes all weights.
void StepAttention::step(int64_t b, int64_t g) const {
  append(b, g, 0, 1);
  weigh_new(b, g);
  read_weights(b, g, 0, base(b));
  limit(b, g);
}

// One part of one kv head's keys where no key is left out, on its own: the queries are rotated by everyone who
// needs them, and the last part has the new key.
void StepAttention::step_part(const Part& part) const {
  const auto [b, g, number, parts] = part;
  const int64_t all = keys(b), first = part_begin(b, parts, number), end = part_begin(b, parts, number + 1);
  float* angles = scratch(kAngles).get(static_cast<size_t>(d_));
  read_angles(token(b, 0), angles);
  if (end == all) {
    append_key(b, g, 0, angles, all - 1);
    weigh_new(b, g);
  }
  read_weights(b, g, first, std::min(end, all - 1));
  attend_part(part, all - 1, new_queries(b, g, angles));
}

}  // namespace doge
