// The bounded cache: at most keep_window_size keys a kv head, and which of them is worst needs no sorting.
//
// One token goes into the buffers where they are: into the next empty slot, or, where there is none, into the
// slot of the worst key if it is better than that. Several tokens are laid out as a static cache of all keys in
// the order of their positions, and what stays of them is written back; while they fit in the empty slots, the
// buffers are such a cache themselves.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "attention.h"
#include "half.h"

namespace doge {

int64_t used_slots(const int64_t* positions, int64_t slots) {
  return std::partition_point(positions, positions + slots, [](int64_t position) { return position >= 0; }) - positions;
}

namespace {

float lowest(const float* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes], least = std::numeric_limits<float>::infinity();
  std::fill(lanes, lanes + kLanes, least);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; lane++) lanes[lane] = x[i + lane] < lanes[lane] ? x[i + lane] : lanes[lane];
  for (; i < n; i++) least = std::min(least, x[i]);
  for (float lane : lanes) least = std::min(least, lane);
  return least;
}

}  // namespace

struct AttentionJob::Laid {
  AttentionIO io;  // a static cache, in which new tokens follow what is there
  std::unique_ptr<AttentionJob> job;
  bool in_buffers;     // it is in the buffers, and nothing is moved
  int64_t* mask;       // [batch, row]
  int64_t* positions;  // [batch, kv_heads, row]
  char *key, *value, *dt;
};

// How many slots are in use, the same in all heads of a row.
void AttentionJob::count_used(Arena& arena) {
  if (io_.slots > window_) throw Error("A bounded cache has more slots than keep_window_size.");
  used_ = reinterpret_cast<int64_t*>(arena.take(2 * io_.batch));
  for (int64_t b = 0; b < io_.batch; b++) {
    const int64_t* positions = io_.past_position + b * kv_heads_ * io_.past;
    used_[b] = used_slots(positions, io_.past);
    for (int64_t g = 1; g < kv_heads_; g++)
      if (used_slots(positions + g * io_.past, io_.past) != used_[b])
        throw Error("The heads of a bounded cache hold different numbers of keys.");
    if (io_.slots < std::min(window_, used_[b] + length_))
      throw Error("The cache has " + std::to_string(io_.slots) + " slots, and " + std::to_string(length_) +
                  " tokens after " + std::to_string(used_[b]) + " do not fit; with " + std::to_string(window_) +
                  " any number would.");
  }
}

void AttentionJob::lay_out(Arena& arena) {
  laid_ = std::make_shared<Laid>();
  const int64_t pairs = io_.batch * kv_heads_, most = *std::max_element(used_, used_ + io_.batch);
  const bool all_real = std::all_of(io_.mask, io_.mask + io_.batch * length_, [](int64_t m) { return m != 0; });
  const bool in_place = io_.past_key == io_.present_key && io_.past == io_.slots;
  laid_->in_buffers = in_place && all_real && most + length_ <= io_.slots;
  const int64_t row = laid_->in_buffers ? io_.slots : most + length_;
  const auto take = [&](int64_t bytes) { return reinterpret_cast<char*>(arena.take((bytes + 3) / 4)); };
  const auto size = static_cast<int64_t>(bytes_of(io_.dtype));
  laid_->mask = reinterpret_cast<int64_t*>(take(io_.batch * row * 8));
  if (laid_->in_buffers) {
    std::fill(laid_->mask, laid_->mask + io_.batch * row, 1);
    laid_->key = static_cast<char*>(io_.present_key);
    laid_->value = static_cast<char*>(io_.present_value);
    laid_->dt = static_cast<char*>(io_.present_dt);
  } else {
    laid_->positions = reinterpret_cast<int64_t*>(take(pairs * row * 8));
    laid_->key = take(pairs * row * d_ * size);
    laid_->value = take(pairs * row * d_ * size);
    laid_->dt = take(pairs * row * size);
  }
  AttentionIO& io = laid_->io = io_;
  io.past = row;
  io.mask = laid_->mask;
  io.past_key = io.present_key = laid_->key;
  io.past_value = io.present_value = laid_->value;
  io.past_dt = io.present_dt = laid_->dt;
  io.cache_position = used_;
  io.bounded = false;
  laid_->job = std::make_unique<AttentionJob>(parts_, laid_->io, query_, key_, value_, output_, arena);
  laid_job_ = laid_->job.get();
}

void AttentionJob::run_laid(Team::Worker& worker) const {
  const int64_t pairs = io_.batch * kv_heads_;
  if (!laid_->in_buffers) worker.phase(pairs, [&](int64_t c) { gather(c / kv_heads_, c % kv_heads_); });
  laid_->job->run(worker);
  worker.phase(pairs, [&](int64_t c) { keep_best(c / kv_heads_, c % kv_heads_); });
}

// The keys of one head in the order of their positions.
void AttentionJob::gather(int64_t b, int64_t g) const {
  thread_local std::vector<int64_t> order;
  const int64_t pair = b * kv_heads_ + g, row = laid_->io.past, used = used_[b];
  const int64_t* positions = io_.past_position + pair * io_.past;
  order.resize(static_cast<size_t>(used));
  std::iota(order.begin(), order.end(), 0);
  const auto earlier = [&](int64_t x, int64_t y) { return positions[x] < positions[y]; };
  if (!std::is_sorted(order.begin(), order.end(), earlier)) std::stable_sort(order.begin(), order.end(), earlier);
  const size_t size = bytes_of(io_.dtype), bytes = static_cast<size_t>(d_) * size;
  for (int64_t i = 0; i < used; i++) {
    const int64_t slot = order[static_cast<size_t>(i)];
    const auto from = static_cast<size_t>(pair * io_.past + slot), to = static_cast<size_t>(pair * row + i);
    std::memcpy(laid_->key + to * bytes, static_cast<const char*>(io_.past_key) + from * bytes, bytes);
    std::memcpy(laid_->value + to * bytes, static_cast<const char*>(io_.past_value) + from * bytes, bytes);
    std::memcpy(laid_->dt + to * size, static_cast<const char*>(io_.past_dt) + from * size, size);
    laid_->positions[to] = positions[slot];
  }
  std::copy_n(io_.positions + b * length_, length_, laid_->positions + pair * row + used);
  if (g > 0) return;
  int64_t* mask = laid_->mask + b * row;
  std::fill(mask, mask + used, 1);
  std::copy_n(io_.mask + b * length_, length_, mask + used);
  std::fill(mask + used + length_, mask + row, 0);
}

// Writes back the best keys of one head, in the order of their positions; of equals the earlier stay.
void AttentionJob::keep_best(int64_t b, int64_t g) const {
  thread_local std::vector<int64_t> kept;
  const int64_t pair = b * kv_heads_ + g, row = laid_->io.past, used = used_[b];
  int64_t* positions = io_.present_position + pair * io_.slots;
  if (laid_->in_buffers) {
    std::copy_n(io_.positions + b * length_, length_, positions + used);
    return;
  }
  const float* dt = laid_->job->weights_ + pair * row;
  kept.clear();
  for (int64_t j = 0; j < used + length_; j++)
    if (dt[j] > kNone) kept.push_back(j);
  const auto slots = static_cast<size_t>(io_.slots);
  if (kept.size() > slots) {
    const auto better = [&](int64_t x, int64_t y) { return dt[x] > dt[y] || (dt[x] == dt[y] && x < y); };
    std::nth_element(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(slots) - 1, kept.end(), better);
    kept.resize(slots);
    std::sort(kept.begin(), kept.end());
  }
  const size_t size = bytes_of(io_.dtype), bytes = static_cast<size_t>(d_) * size;
  const auto count = static_cast<int64_t>(kept.size());
  const auto target = [&](void* tensor, size_t each) {
    return static_cast<char*>(tensor) + static_cast<size_t>(pair * io_.slots) * each;
  };
  char *key = target(io_.present_key, bytes), *value = target(io_.present_value, bytes);
  char* weight = target(io_.present_dt, size);
  for (int64_t i = 0; i < count; i++) {
    const auto from = static_cast<size_t>(pair * row + kept[static_cast<size_t>(i)]), to = static_cast<size_t>(i);
    std::memcpy(key + to * bytes, laid_->key + from * bytes, bytes);
    std::memcpy(value + to * bytes, laid_->value + from * bytes, bytes);
    std::memcpy(weight + to * size, laid_->dt + from * size, size);
    positions[i] = laid_->positions[from];
  }
  const auto done = static_cast<size_t>(count), left = static_cast<size_t>(io_.slots - count);
  std::fill(positions + count, positions + io_.slots, -1);
  std::memset(weight + done * size, 0, left * size);
  if (io_.past_key == io_.present_key) return;  // whatever is in an empty slot is finite
  std::memset(key + done * bytes, 0, left * bytes);
  std::memset(value + done * bytes, 0, left * bytes);
}

// Where row b's new key goes in a buffer that is written in place: an empty slot, that of the worst key, or, if
// it is worse itself, nowhere (-1). dt is its weight.
AttentionJob::Place AttentionJob::find_place(int64_t b, int64_t g) const {
  Place place{used_[b], new_weight(b, g)};
  if (place.slot < row_) return place;
  const int64_t at = (b * kv_heads_ + g) * row_;
  const float* dt = static_cast<const float*>(io_.past_dt) + at;
  if (io_.dtype != Dtype::float32) {
    float* room = scratch(kRoom).get(static_cast<size_t>(row_));
    read_floats(io_.dtype, io_.past_dt, at, row_, room);
    dt = room;
  }
  place.slot = -1;
  const float worst = lowest(dt, row_);
  if (!(place.dt > worst)) return place;  // of equals the earlier stays
  const int64_t* positions = io_.past_position + at;
  for (int64_t slot = 0; slot < row_; slot++)
    if (dt[slot] == worst && (place.slot < 0 || positions[slot] > positions[place.slot])) place.slot = slot;
  return place;
}

// One split of one kv head's keys, all of which are seen. The split with the new key's slot writes it there; the
// others still look at the weights and positions, which `commit` changes.
void AttentionJob::step_bounded(int64_t b, int64_t g, int64_t split, const Place& place) const {
  const int64_t pair = b * kv_heads_ + g, keys = base(b) + 1, first = split * split_size_;
  const int64_t count = std::min(split_size_, keys - first);
  if (split == 0) places_[pair] = place;
  const Running softmax = fresh_split(b, g, split);
  if (count <= 0) return;
  float* angles = scratch(kAngles).get(static_cast<size_t>(d_));
  read_floats(io_.dtype, io_.cos, b * d_ / 2, d_ / 2, angles);
  read_floats(io_.dtype, io_.sin, b * d_ / 2, d_ / 2, angles + d_ / 2);
  float* weights = weights_ + pair * row_;
  read_floats(io_.dtype, io_.past_dt, pair * row_ + first, count, weights + first);
  if (place.slot >= first && place.slot < first + count) {
    append_key(b, g, 0, angles, place.slot);
    weights[place.slot] = place.dt;
  }
  attend_alone(b, g, keys - 1, angles, first, count, softmax);
}

void AttentionJob::commit() const {
  if (places_ == nullptr) return;
  for (int64_t pair = 0; pair < io_.batch * kv_heads_; pair++) {
    const Place& place = places_[pair];
    if (place.slot < 0) continue;
    write_floats(io_.dtype, &place.dt, 1, io_.present_dt, pair * row_ + place.slot);
    io_.present_position[pair * row_ + place.slot] = io_.positions[pair / kv_heads_];
  }
}

}  // namespace doge
