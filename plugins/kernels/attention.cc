#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"

namespace doge {
namespace {

constexpr int64_t kCopy = 512;    // positions that one chunk copies
constexpr int64_t kAppend = 8;    // new positions of one chunk
constexpr int64_t kTile = 24;     // query rows of a prefill tile, about
constexpr int64_t kAlone = 32;    // so few keys one worker takes alone

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Scratch<float>& scratch(AttentionScratch which) {
  thread_local Scratch<float> memory[kAttentionScratches];
  return memory[which];
}

void round_to(Dtype dtype, int64_t n, float* x) {
  if (dtype == Dtype::float16)
    for (int64_t i = 0; i < n; i++) x[i] = half_to_float(float_to_half(x[i]));
  if (dtype == Dtype::bfloat16)
    for (int64_t i = 0; i < n; i++) x[i] = bfloat16_to_float(float_to_bfloat16(x[i]));
}

AttentionParts::AttentionParts(const AttentionConfig& c, const AttentionWeights& w)
    : config(c), q_norm(w.q_norm), k_norm(w.k_norm), dt_weight(w.dt_weight.begin(), w.dt_weight.end()),
      dt_bias(w.dt_bias.begin(), w.dt_bias.end()), A(w.A.begin(), w.A.end()) {
  if (c.num_kv_heads <= 0 || c.num_heads <= 0 || c.head_dim <= 0 || c.num_heads % c.num_kv_heads || c.head_dim % 2)
    throw Error("Attention has " + std::to_string(c.num_heads) + " heads of " + std::to_string(c.head_dim) + " over " +
                std::to_string(c.num_kv_heads) + " key-value heads, which no model has.");
  if (c.keep_window_size <= 0 || c.sliding_window < 0) throw Error("A window of attention is not positive.");
  const auto d = static_cast<size_t>(c.head_dim), g = static_cast<size_t>(c.num_kv_heads);
  if (dt_bias.empty()) dt_bias.assign(g, 0.0);
  if (q_norm.size() != d || k_norm.size() != d || dt_weight.size() != g * g * d || dt_bias.size() != g || A.size() != g)
    throw Error("A small weight of attention has another size than the heads make it.");
}

AttentionJob::AttentionJob(const AttentionParts& parts, const AttentionIO& io, float* query, float* key, float* value,
                           float* output, Arena& arena)
    : parts_(parts), io_(io), loops_(isa()), heads_(parts.config.num_heads), kv_heads_(parts.config.num_kv_heads),
      d_(parts.config.head_dim), group_(heads_ / kv_heads_), length_(io.sequence),
      row_(io.cache_position || io.bounded ? io.past : io.past + io.sequence),
      window_(parts.config.keep_window_size), query_(query), key_(key), value_(value), output_(output) {
  const bool bounded = io.bounded;
  if (bounded) {
    count_used(arena);
    const bool real = std::all_of(io.mask, io.mask + io.batch, [](int64_t m) { return m != 0; });
    if (length_ > 1 || !real || io.past_key != io.present_key || io.past != io.slots) {
      lay_out(arena);
      return;
    }
    places_ = reinterpret_cast<Place*>(arena.take(static_cast<int64_t>(sizeof(Place) / 4) * io.batch * kv_heads_));
  }
  most_keys_ = 0;
  for (int64_t b = 0; b < io.batch; b++) {
    if (base(b) < 0 || base(b) + length_ > row_)
      throw Error("The cache has " + std::to_string(row_) + " slots, and " + std::to_string(length_) +
                  " tokens do not fit in from slot " + std::to_string(base(b)) + " on.");
    most_keys_ = std::max(most_keys_, base(b) + length_);
  }
  const int64_t sliding = parts.config.sliding_window;
  const int64_t reach = sliding ? std::min(most_keys_, sliding) : most_keys_;
  limited_ = reach > window_;
  single_ = length_ <= kSingle;
  step_in_place_ = bounded || (length_ == 1 && io.cache_position && io.past_key == io.present_key);
  shared_step_ = step_in_place_ && !limited_ && !io.keep;
  // An even number of splits of equal size; they depend on the length alone, and so do the last bits.
  splits_ = !single_ ? 0 : most_keys_ > kAlone ? 2 * ceil_div(most_keys_, kSplit) : 1;
  split_size_ = single_ ? ceil_div(most_keys_, splits_) : 0;
  tile_rows_ = std::max<int64_t>(1, kTile / group_);  // in positions
  tiles_ = single_ ? 0 : ceil_div(length_, tile_rows_);
  blocks_ = single_ ? 0 : ceil_div(most_keys_, kPanel);
  const int64_t pairs = io.batch * kv_heads_;
  lasts_ = reinterpret_cast<int64_t*>(arena.take(2 * pairs * length_));
  thresholds_ = arena.take(pairs * length_);
  weights_ = arena.take(pairs * row_);
  partials_ = splits_ > 1 ? arena.take(pairs * splits_ * length_ * group_ * (d_ + 2)) : nullptr;
  panels_ = blocks_ > 0 ? arena.take(pairs * blocks_ * d_ * kPanel) : nullptr;
}

size_t AttentionJob::width() const {
  if (laid_) return inner().width();
  return static_cast<size_t>(std::max<int64_t>(2, io_.batch * kv_heads_ * std::max(splits_, tiles_)));
}

// The first position that still exists for a sliding cache, which forgets what no later query sees.
int64_t AttentionJob::start(int64_t b) const {
  const int64_t sliding = parts_.config.sliding_window;
  return sliding ? std::max<int64_t>(0, base(b) - sliding + 1) : 0;
}

void AttentionJob::run(Team::Worker& worker) const {
  const int64_t pairs = io_.batch * kv_heads_;
  if (laid_) {
    run_laid(worker);
    return;
  }
  if (places_) {
    int64_t pair = -1;  // its place is looked for once
    Place place{};
    worker.phase(pairs * splits_, [&](int64_t c) {
      if (c / splits_ != pair) {
        pair = c / splits_;
        place = find_place(pair / kv_heads_, pair % kv_heads_);
      }
      step_bounded(pair / kv_heads_, pair % kv_heads_, c % splits_, place);
    });
    return;
  }
  if (shared_step_) {
    worker.phase(pairs * splits_, [&](int64_t c) { step_part(c / splits_ / kv_heads_, c / splits_ % kv_heads_, c % splits_); });
    return;
  }
  if (step_in_place_) {
    worker.phase(pairs, [&](int64_t c) { step(c / kv_heads_, c % kv_heads_); });
    attend(worker);
    return;
  }
  const bool moves = io_.past > 0 && io_.past_key != io_.present_key;
  const int64_t copies = moves ? pairs * ceil_div(io_.past, kCopy) : 0;
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
    const int64_t parts = ceil_div(length_, kSplit);
    worker.phase(io_.batch * parts, [&](int64_t c) {
      const int64_t b = c / parts, first = c % parts * kSplit;
      if (first == 0) keep_static(b);
      weigh(b, base(b) + first, std::min(kSplit, length_ - first));
    });
  } else {
    const int64_t parts = ceil_div(row_, kSplit);
    worker.phase(io_.batch * parts, [&](int64_t c) {
      const int64_t first = c % parts * kSplit;
      weigh(c / parts, first, std::min(kSplit, row_ - first));
    });
  }
  if (limited_) worker.phase(pairs, [&](int64_t c) { limit(c / kv_heads_, c % kv_heads_); });
  attend(worker);
}

// The second half: from thresholds to outputs.
void AttentionJob::attend(Team::Worker& worker) const {
  const int64_t pairs = io_.batch * kv_heads_;
  if (single_) {
    worker.phase(pairs * splits_, [&](int64_t c) { decode(c / splits_ / kv_heads_, c / splits_ % kv_heads_, c % splits_); });
    if (splits_ > 1) worker.phase(pairs, [&](int64_t c) { merge(c / kv_heads_, c % kv_heads_, output_); });
  } else {
    worker.phase(pairs * blocks_,
                 [&](int64_t c) { transpose_keys(c / blocks_ / kv_heads_, c / blocks_ % kv_heads_, c % blocks_); });
    // Each worker has the rows that it has in a layer's other phases. The last of them see the most keys and come
    // first, so that no thread ends alone with one.
    const int64_t strip = ceil_div(tiles_, worker.width());
    worker.phase(pairs * tiles_, [&](int64_t c) {
      const int64_t tile = c / pairs, begin = tile / strip * strip, end = std::min(begin + strip, tiles_);
      prefill(c % pairs / kv_heads_, c % pairs % kv_heads_, end - 1 - (tile - begin));
    });
  }
  if (io_.keep) worker.phase(pairs, [&](int64_t c) { write_keep(c / kv_heads_, c % kv_heads_); });
}

void AttentionJob::copy_past(int64_t chunk) const {
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
void AttentionJob::append(int64_t b, int64_t g, int64_t first, int64_t count) const {
  const int64_t half = d_ / 2;
  float* cos = scratch(kAngles).get(static_cast<size_t>(d_));
  float* sin = cos + half;
  for (int64_t s = first; s < first + count; s++) {
    const int64_t row = b * length_ + s;
    read_floats(io_.dtype, io_.cos, row * half, half, cos);
    read_floats(io_.dtype, io_.sin, row * half, half, sin);
    for (int64_t h = g * group_; h < (g + 1) * group_; h++) {
      float* q = query_ + (row * heads_ + h) * d_;
      loops_.rms_norm(q, parts_.q_norm.data(), q, d_, parts_.config.epsilon);
      loops_.rotate(q, cos, sin, d_);
    }
    append_key(b, g, s, cos, base(b) + s);
  }
}

// One key and value into the cache; cos [d / 2], then sin.
void AttentionJob::append_key(int64_t b, int64_t g, int64_t s, const float* angles, int64_t slot) const {
  const int64_t row = b * length_ + s;
  float* k = key_ + (row * kv_heads_ + g) * d_;
  loops_.rms_norm(k, parts_.k_norm.data(), k, d_, parts_.config.epsilon);
  loops_.rotate(k, angles, angles + d_ / 2, d_);
  const int64_t at = ((b * kv_heads_ + g) * row_ + slot) * d_;
  write_floats(io_.dtype, k, d_, io_.present_key, at);
  write_floats(io_.dtype, value_ + (row * kv_heads_ + g) * d_, d_, io_.present_value, at);
}

const float* AttentionJob::cached(const void* cache, int64_t b, int64_t g, int64_t first, int64_t count,
                                  float* room) const {
  const int64_t at = ((b * kv_heads_ + g) * row_ + first) * d_;
  if (io_.dtype == Dtype::float32) return static_cast<const float*>(cache) + at;
  if (io_.dtype == Dtype::float16)
    loops_.widen_f16(count * d_, static_cast<const uint16_t*>(cache) + at, room);
  else
    read_floats(io_.dtype, cache, at, count * d_, room);
  return room;
}

// dt of positions [first, first + count) of all kv heads, from their values.
void AttentionJob::weigh(int64_t b, int64_t first, int64_t count) const {
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
  const int64_t* mask = io_.mask + b * row_;
  for (int64_t g = 0; g < kv_heads_; g++) {
    float* dt = weights_ + (b * kv_heads_ + g) * row_ + first;
    const auto head = static_cast<size_t>(g);
    loops_.key_weights(count, kv_heads_, d_, values, stride, parts_.dt_weight.data() + g * kv_heads_ * d_,
                       parts_.dt_bias[head], parts_.A[head], dt);
    round_to(io_.dtype, count, dt);
    if (io_.present_dt) {
      const int64_t reach = io_.cache_position ? row_ : row_ - start(b);
      const int64_t offset = io_.cache_position ? 0 : start(b);
      write_floats(io_.dtype, dt, count, io_.present_dt, (b * kv_heads_ + g) * reach + first - offset);
    }
    for (int64_t j = 0; j < count; j++)
      if (mask[first + j] == 0) dt[j] = kNone;
  }
}

// dt of the slots that are not new, of all kv heads.
void AttentionJob::keep_static(int64_t b) const {
  const int64_t first = base(b), *mask = io_.mask + b * row_;
  for (int64_t g = 0; g < kv_heads_; g++) {
    const int64_t at = (b * kv_heads_ + g) * row_;
    const auto copy = [&](int64_t begin, int64_t end) {
      const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at + begin) * size;
      std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                  static_cast<size_t>(end - begin) * size);
    };
    if (io_.past_dt != io_.present_dt) {
      copy(0, first);
      copy(first + length_, row_);
    }
    float* dt = weights_ + at;
    read_floats(io_.dtype, io_.present_dt, at, first, dt);
    for (int64_t j = 0; j < first; j++)
      if (mask[j] == 0) dt[j] = kNone;
  }
}

void dynamic_mask_attention(const AttentionConfig& config, const AttentionWeights& weights, const AttentionIO& io,
                            const void* query, const void* key, const void* value, void* output, Threads& threads) {
  const AttentionParts parts(config, weights);
  const int64_t rows = io.batch * io.sequence, width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  if (rows == 0) return;
  thread_local Scratch<float> memory;
  float* q = memory.get(static_cast<size_t>(rows * (2 * width + 2 * kv_width)));
  float *k = q + rows * width, *v = k + rows * kv_width, *out = v + rows * kv_width;
  read_floats(io.dtype, query, 0, rows * width, q);
  read_floats(io.dtype, key, 0, rows * kv_width, k);
  read_floats(io.dtype, value, 0, rows * kv_width, v);
  thread_local Arena arena;
  arena.clear();
  const AttentionJob job(parts, io, q, k, v, out, arena);
  auto body = [&](Team::Worker& worker) { job.run(worker); };
  Team::run(threads, job.width(), body);
  job.commit();
  if (job.in_parts()) job.merge_all(out);
  write_floats(io.dtype, out, rows * width, output, 0);
}

}  // namespace doge
