#include "attention_cached.h"

#include <algorithm>
#include <cstring>

#include "attention_step.h"
#include "half.h"

namespace doge {
namespace {

constexpr int64_t kCopy = 512;  // positions that one chunk copies
constexpr int64_t kAppend = 8;  // new positions of one chunk

}  // namespace

std::unique_ptr<AttentionCore> make_cached_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, const int64_t* bases, Arena& arena) {
  if (io.sequence > kSingle) return std::make_unique<Prefill>(parts, io, rows, bases, arena);
  if (io.sequence == 1 && io.cache_position && io.past_key == io.present_key)
    return std::make_unique<StepAttention>(parts, io, rows, bases, arena);
  return std::make_unique<FewQueries>(parts, io, rows, bases, arena);
}

void CachedAttention::run(Team::Worker& worker) const {
  const bool moves = io_.past > 0 && io_.past_key != io_.present_key;
  const int64_t copies = moves ? pairs() * ceil_div(io_.past, kCopy) : 0;
  const int64_t pieces = ceil_div(length_, kAppend);
  worker.phase(copies + io_.batch * pieces, [&](int64_t c) {
    if (c < copies)
      copy_past(c);
    else
      for (int64_t g = 0; g < kv_heads_; g++)
        append((c - copies) / pieces, g, (c - copies) % pieces * kAppend,
               std::min(kAppend, length_ - (c - copies) % pieces * kAppend));
  });
  if (io_.cache_position) {
    weigh_new_keys(worker);
  } else {
    const int64_t parts = ceil_div(row_, kSplit);
    worker.phase(io_.batch * parts, [&](int64_t c) {
      const int64_t first = c % parts * kSplit;
      weigh(c / parts, first, std::min(kSplit, row_ - first));
    });
  }
  if (limited_) worker.phase(pairs(), [&](int64_t c) { limit(c / kv_heads_, c % kv_heads_); });
  attend(worker);
}

// The weights of all keys of a static cache, those of the new ones from their values.
void CachedAttention::weigh_new_keys(Team::Worker& worker) const {
  const int64_t parts = ceil_div(length_, kSplit);
  worker.phase(io_.batch * parts, [&](int64_t c) {
    const int64_t b = c / parts, first = c % parts * kSplit;
    if (first == 0) keep_static(b);
    weigh(b, base(b) + first, std::min(kSplit, length_ - first));
  });
}

void CachedAttention::copy_past(int64_t chunk) const {
  const int64_t parts = ceil_div(io_.past, kCopy), pair = chunk / parts, first = chunk % parts * kCopy;
  const int64_t count = std::min(kCopy, io_.past - first);
  const size_t size = bytes_of(io_.dtype), bytes = static_cast<size_t>(count * d_) * size;
  const size_t from = static_cast<size_t>((pair * io_.past + first) * d_) * size;
  const size_t to = static_cast<size_t>((pair * row_ + first) * d_) * size;
  // A static cache: the new positions are written by `append` at the same time.
  const int64_t b = pair / kv_heads_;
  const auto copy = [&](const void* source, void* target, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const size_t skip = static_cast<size_t>((begin - first) * d_) * size;
    std::memcpy(static_cast<char*>(target) + to + skip, static_cast<const char*>(source) + from + skip,
                std::min(bytes - skip, static_cast<size_t>((end - begin) * d_) * size));
  };
  const int64_t gap_begin = io_.cache_position ? base(b) : io_.past;
  const int64_t gap_end = io_.cache_position ? base(b) + length_ : io_.past;
  for (int part = 0; part < 2; part++) {
    const void* source = part ? io_.past_value : io_.past_key;
    void* target = part ? io_.present_value : io_.present_key;
    copy(source, target, first, std::min(first + count, gap_begin));
    copy(source, target, std::max(first, gap_end), first + count);
  }
}

// Rotates queries and keys of one kv head and its group, and writes keys and values into the cache.
void CachedAttention::append(int64_t b, int64_t g, int64_t first, int64_t count) const {
  float* cos = scratch(kAngles).get(static_cast<size_t>(d_));
  const float* sin = cos + d_ / 2;
  for (int64_t s = first; s < first + count; s++) {
    const int64_t row = token(b, s);
    read_angles(row, cos);
    for (int64_t h = g * group_; h < (g + 1) * group_; h++) {
      float* q = rows_.query + (row * heads_ + h) * d_;
      loops_.rms_norm(q, parts_.q_norm.data(), q, d_, parts_.config.epsilon);
      loops_.rotate(q, cos, sin, d_);
    }
    append_key(b, g, s, cos, base(b) + s);
  }
}

// dt of positions [first, first + count) of all kv heads, from their values.
void CachedAttention::weigh(int64_t b, int64_t first, int64_t count) const {
  const int64_t begin = std::max(first, start(b));
  count -= begin - first;
  first = begin;
  if (count <= 0) return;
  const float* values;
  int64_t stride = row_ * d_;
  if (io_.dtype == Dtype::float32) {
    values = cached(io_.present_value, b, 0, first, count, nullptr);
  } else {
    float* room = scratch(kRoom).get(static_cast<size_t>(kv_heads_ * count * d_));
    for (int64_t g = 0; g < kv_heads_; g++) cached(io_.present_value, b, g, first, count, room + g * count * d_);
    values = room;
    stride = count * d_;
  }
  for (int64_t g = 0; g < kv_heads_; g++) {
    float* dt = weights_ + (b * kv_heads_ + g) * row_ + first;
    const auto head = static_cast<size_t>(g);
    loops_.key_weights(count, kv_heads_, d_, values, stride, parts_.dt_weight.data() + g * kv_heads_ * d_,
                       parts_.dt_bias[head], parts_.A[head], dt);
    round_to(io_.dtype, count, dt);
    if (io_.present_dt) {
      const int64_t reach = io_.cache_position ? row_ : row_ - start(b);
      const int64_t offset = io_.cache_position ? 0 : start(b);
      write_floats(io_.dtype, dt, count, io_.present_dt, cache_row(b, g) * reach + first - offset);
    }
    for (int64_t j = 0; io_.mask && j < count; j++)
      if (!is_real(b, first + j)) dt[j] = kNone;
  }
}

// dt of the slots that are not new, of all kv heads.
void CachedAttention::keep_static(int64_t b) const {
  const int64_t first = base(b);
  for (int64_t g = 0; g < kv_heads_; g++) {
    const int64_t at = cache_row(b, g) * row_;
    const auto copy = [&](int64_t begin, int64_t end) {
      const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at + begin) * size;
      std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                  static_cast<size_t>(end - begin) * size);
    };
    if (io_.past_dt != io_.present_dt) {
      copy(0, first);
      copy(first + length_, row_);
    }
    float* dt = weights_ + (b * kv_heads_ + g) * row_;
    read_floats(io_.dtype, io_.present_dt, at, first, dt);
    for (int64_t j = 0; io_.mask && j < first; j++)
      if (!is_real(b, j)) dt[j] = kNone;
  }
}

}  // namespace doge
