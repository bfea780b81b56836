#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"

namespace doge {
namespace {

constexpr int64_t kSplit = 256;   // keys that one pass of the softmax takes
constexpr int64_t kCopy = 512;    // positions that one chunk copies
constexpr int64_t kAppend = 8;    // new positions of one chunk
constexpr int64_t kTile = 24;     // query rows of a prefill tile, about
constexpr int64_t kSingle = 4;    // sequences up to this are taken as decode steps
const float kNone = -std::numeric_limits<float>::infinity();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[8];
  return memory[which];
}
enum { kShared, kTiles, kScores, kRoom, kAcc };

void round_to(Dtype dtype, int64_t n, float* x) {
  if (dtype == Dtype::float16)
    for (int64_t i = 0; i < n; i++) x[i] = half_to_float(float_to_half(x[i]));
  if (dtype == Dtype::bfloat16)
    for (int64_t i = 0; i < n; i++) x[i] = bfloat16_to_float(float_to_bfloat16(x[i]));
}

}  // namespace

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
                           float* output)
    : parts_(parts), io_(io), loops_(isa()), heads_(parts.config.num_heads), kv_heads_(parts.config.num_kv_heads),
      d_(parts.config.head_dim), group_(heads_ / kv_heads_), length_(io.sequence),
      row_(io.cache_position ? io.past : io.past + io.sequence), window_(parts.config.keep_window_size), query_(query),
      key_(key), value_(value), output_(output) {
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
  step_in_place_ = length_ == 1 && io.cache_position && io.past_key == io.present_key;
  splits_ = single_ ? ceil_div(most_keys_, kSplit) : 0;
  tile_rows_ = std::max<int64_t>(1, kTile / group_);  // in positions
  tiles_ = single_ ? 0 : ceil_div(length_, tile_rows_);
  blocks_ = single_ ? 0 : ceil_div(most_keys_, kPanel);
  const int64_t pairs = io.batch * kv_heads_;
  const int64_t weights = pairs * row_, limits = pairs * length_;
  const int64_t partials = splits_ > 1 ? pairs * splits_ * length_ * group_ * (d_ + 2) : 0;
  const int64_t panels = pairs * blocks_ * d_ * kPanel;
  float* memory = scratch(kShared).get(static_cast<size_t>(weights + 3 * limits + partials + panels + 128));
  lasts_ = reinterpret_cast<int64_t*>(memory);
  thresholds_ = memory + 2 * limits;
  weights_ = thresholds_ + limits;
  partials_ = weights_ + weights;
  panels_ = partials_ + partials;
}

size_t AttentionJob::width() const {
  return static_cast<size_t>(std::max<int64_t>(2, io_.batch * kv_heads_ * std::max(splits_, tiles_)));
}

// The first position that still exists for a sliding cache, which forgets what no later query sees.
int64_t AttentionJob::start(int64_t b) const {
  const int64_t sliding = parts_.config.sliding_window;
  return sliding ? std::max<int64_t>(0, base(b) - sliding + 1) : 0;
}

void AttentionJob::run(Team::Worker& worker) const {
  const int64_t pairs = io_.batch * kv_heads_;
  if (step_in_place_) {  // a head's work up to its scores is too little to share out
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
    worker.phase(io_.batch, [&](int64_t b) { weigh_static(b); });
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
    if (!(step_in_place_ && splits_ == 1))  // else `step` went all the way
      worker.phase(pairs * splits_, 
                   [&](int64_t c) { decode(c / splits_ / kv_heads_, c / splits_ % kv_heads_, c % splits_); });
    if (splits_ > 1) worker.phase(pairs, [&](int64_t c) { merge(c / kv_heads_, c % kv_heads_); });
  } else {
    worker.phase(pairs * blocks_,
                 [&](int64_t c) { transpose_keys(c / blocks_ / kv_heads_, c / blocks_ % kv_heads_, c % blocks_); });
    worker.phase(pairs * tiles_, [&](int64_t c) {
      // The last tiles see the most keys: they come first, so that no thread ends alone with one.
      prefill(c % pairs / kv_heads_, c % pairs % kv_heads_, tiles_ - 1 - c / pairs);
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

// All that one kv head needs for a decode step in place, and the step itself where its keys are few.
void AttentionJob::step(int64_t b, int64_t g) const {
  append(b, g, 0, 1);
  float* value = scratch(kTiles).get(static_cast<size_t>(kv_heads_ * d_));
  std::memcpy(value, value_ + b * kv_heads_ * d_, static_cast<size_t>(kv_heads_ * d_) * 4);
  round_to(io_.dtype, kv_heads_ * d_, value);
  const int64_t at = (b * kv_heads_ + g) * row_, slot = base(b), *mask = io_.mask + b * row_;
  float* dt = weights_ + at;
  const auto head = static_cast<size_t>(g);
  loops_.key_weights(1, kv_heads_, d_, value, d_, parts_.dt_weight.data() + g * kv_heads_ * d_, parts_.dt_bias[head],
                     parts_.A[head], dt + slot);
  round_to(io_.dtype, 1, dt + slot);
  const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at) * size;
  if (io_.past_dt != io_.present_dt)
    std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                static_cast<size_t>(row_) * size);
  write_floats(io_.dtype, dt + slot, 1, io_.present_dt, at + slot);
  read_floats(io_.dtype, io_.past_dt, at, slot, dt);
  for (int64_t j = 0; j <= slot; j++)
    if (mask[j] == 0) dt[j] = kNone;
  if (limited_) limit(b, g);
  if (splits_ == 1) decode(b, g, 0);
}

// Rotates queries and keys of one kv head and its group, and writes keys and values into the cache.
void AttentionJob::append(int64_t b, int64_t g, int64_t first, int64_t count) const {
  const int64_t half = d_ / 2;
  std::vector<float>& angles = [this, half]() -> std::vector<float>& {
    thread_local std::vector<float> memory;
    memory.resize(static_cast<size_t>(2 * half));
    return memory;
  }();
  for (int64_t s = first; s < first + count; s++) {
    const int64_t row = b * length_ + s, slot = base(b) + s;
    read_floats(io_.dtype, io_.cos, row * half, half, angles.data());
    read_floats(io_.dtype, io_.sin, row * half, half, angles.data() + half);
    const float *cos = angles.data(), *sin = angles.data() + half;
    for (int64_t h = g * group_; h < (g + 1) * group_; h++) {
      float* q = query_ + (row * heads_ + h) * d_;
      loops_.rms_norm(q, parts_.q_norm.data(), q, d_, parts_.config.epsilon);
      loops_.rotate(q, cos, sin, d_);
    }
    float* k = key_ + (row * kv_heads_ + g) * d_;
    loops_.rms_norm(k, parts_.k_norm.data(), k, d_, parts_.config.epsilon);
    loops_.rotate(k, cos, sin, d_);
    const int64_t at = ((b * kv_heads_ + g) * row_ + slot) * d_;
    write_floats(io_.dtype, k, d_, io_.present_key, at);
    write_floats(io_.dtype, value_ + (row * kv_heads_ + g) * d_, d_, io_.present_value, at);
  }
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

void AttentionJob::weigh_static(int64_t b) const {
  const int64_t first = base(b), keys = first + length_, *mask = io_.mask + b * row_;
  for (int64_t g = 0; g < kv_heads_; g++) {
    const int64_t at = (b * kv_heads_ + g) * row_;
    if (io_.past_dt != io_.present_dt) {
      const size_t size = bytes_of(io_.dtype), offset = static_cast<size_t>(at) * size;
      std::memcpy(static_cast<char*>(io_.present_dt) + offset, static_cast<const char*>(io_.past_dt) + offset,
                  static_cast<size_t>(row_) * size);
    }
    float* dt = weights_ + at;
    read_floats(io_.dtype, io_.present_dt, at, first, dt);
    for (int64_t j = 0; j < first; j++)
      if (mask[j] == 0) dt[j] = kNone;
  }
  for (int64_t j = first; j < keys; j += kSplit) weigh(b, j, std::min(kSplit, keys - j));
}

void AttentionJob::limit(int64_t b, int64_t g) const {
  if (parts_.config.sliding_window)
    limit_sliding(b, g);
  else
    limit_running(b, g);
}

// The thresholds of all queries of a head: running, the worst key kept on top of a heap.
void AttentionJob::limit_running(int64_t b, int64_t g) const {
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
void AttentionJob::limit_sliding(int64_t b, int64_t g) const {
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
void AttentionJob::finish(int64_t b, int64_t g, int64_t row, float best, float sum, float* acc) const {
  const int64_t s = row / group_, head = g * group_ + row % group_;
  float* output = output_ + ((b * length_ + s) * heads_ + head) * d_;
  if (best == kNone) {
    std::fill(acc, acc + d_, 0.0f);
    const int64_t first = start(b), end = base(b) + length_;
    float* room = scratch(kRoom).get(static_cast<size_t>(d_));
    for (int64_t j = first; j < end; j++) loops_.axpy(d_, 1.0f, cached(io_.present_value, b, g, j, 1, room), acc);
    sum = static_cast<float>(end - first);
  }
  for (int64_t i = 0; i < d_; i++) output[i] = acc[i] / sum;
}

void AttentionJob::decode(int64_t b, int64_t g, int64_t split) const {
  const int64_t rows = length_ * group_, first = split * kSplit;
  const int64_t count = std::min(kSplit, base(b) + length_ - first);
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
    for (int64_t r = 0; r < rows; r++) finish(b, g, r, best[r], sums[r], acc + r * d_);
}

void AttentionJob::merge(int64_t b, int64_t g) const {
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
    finish(b, g, r, best, sum, acc);
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
  for (int64_t r = 0; r < rows; r++) finish(b, g, first * group_ + r, best[r], sums[r], acc + r * d_);
}

void AttentionJob::write_keep(int64_t b, int64_t g) const {
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
  const AttentionJob job(parts, io, q, k, v, out);
  auto body = [&](Team::Worker& worker) { job.run(worker); };
  Team::run(threads, job.width(), body);
  write_floats(io.dtype, out, rows * width, output, 0);
}

}  // namespace doge
