#include "attention_bounded.h"

#include <algorithm>
#include <cstring>

#include "attention_evict.h"
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

// How many slots of each row are in use, the same in all its heads.
int64_t* count_used(const AttentionConfig& config, const AttentionIO& io, Arena& arena) {
  const int64_t window = config.keep_window_size, kv_heads = config.num_kv_heads;
  if (io.slots > window) throw Error("A bounded cache has more slots than keep_window_size.");
  auto* used = reinterpret_cast<int64_t*>(arena.take(2 * io.batch));
  for (int64_t b = 0; b < io.batch; b++) {
    const int64_t* positions = io.past_position + (io.rows ? io.rows[b].slot : b) * kv_heads * io.past;
    used[b] = used_slots(positions, io.past);
    for (int64_t g = 1; g < kv_heads; g++)
      if (used_slots(positions + g * io.past, io.past) != used[b])
        throw Error("The heads of a bounded cache hold different numbers of keys.");
    if (io.slots < std::min(window, used[b] + io.sequence))
      throw Error("The cache has " + std::to_string(io.slots) + " slots, and " + std::to_string(io.sequence) +
                  " tokens after " + std::to_string(used[b]) + " do not fit; with " + std::to_string(window) +
                  " any number would.");
  }
  return used;
}

bool all_real(const AttentionIO& io) {
  return !io.mask || std::all_of(io.mask, io.mask + io.batch * io.sequence, [](int64_t m) { return m != 0; });
}
bool in_place(const AttentionIO& io) { return io.past_key == io.present_key && io.past == io.slots; }

// The slot of each row's last key of all, once its new one is there.
int64_t* last_slots(const AttentionIO& io, const int64_t* used, Arena& arena) {
  auto* slots = reinterpret_cast<int64_t*>(arena.take(2 * io.batch));
  for (int64_t b = 0; b < io.batch; b++) slots[b] = std::min(used[b], io.past - 1);
  return slots;
}

}  // namespace

std::unique_ptr<AttentionJob> make_bounded_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, Arena& arena) {
  const int64_t* used = count_used(parts.config, io, arena);
  if (io.sequence == 1 && all_real(io) && in_place(io)) return std::make_unique<BoundedStep>(parts, io, rows, used, arena);
  const int64_t most = *std::max_element(used, used + io.batch);
  if (in_place(io) && all_real(io) && most + io.sequence <= io.slots)
    return std::make_unique<BoundedFill>(parts, io, rows, used, arena);
  return std::make_unique<BoundedEvict>(parts, io, rows, used, arena);
}

BoundedStep::BoundedStep(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows,
                         const int64_t* used, Arena& arena)
    : AttentionCore(parts, io, rows, last_slots(io, used, arena), arena), used_(used),
      targets_(reinterpret_cast<Target*>(arena.take(static_cast<int64_t>(sizeof(Target) / 4) * pairs()))) {}

void BoundedStep::run(Team::Worker& worker) const {
  int64_t pair = -1;  // its target is looked for once
  const int64_t width = worker.width();
  Target target{};
  worker.phase(all_parts(width), [&](int64_t c) {
    const Part part = find_part(c, width);
    if (part.b * kv_heads_ + part.g != pair) {
      pair = part.b * kv_heads_ + part.g;
      target = find_target(part.b, part.g);
    }
    step(part, target);
  });
  merge_many(worker);
}

// Where row b's new key goes in a buffer that is written in place: an empty slot, that of the worst key, or, if
// it is worse itself, nowhere (-1). dt is its weight.
BoundedStep::Target BoundedStep::find_target(int64_t b, int64_t g) const {
  Target target{used_[b], new_weight(b, g)};
  if (target.slot < row_) return target;
  const int64_t at = cache_row(b, g) * row_;
  const float* dt = static_cast<const float*>(io_.past_dt) + at;
  if (io_.dtype != Dtype::float32) {
    float* room = scratch(kRoom).get(static_cast<size_t>(row_));
    read_floats(io_.dtype, io_.past_dt, at, row_, room);
    dt = room;
  }
  target.slot = -1;
  const float worst = lowest(dt, row_);
  if (!(target.dt > worst)) return target;  // of equals the earlier stays
  const int64_t* positions = io_.past_position + at;
  for (int64_t slot = 0; slot < row_; slot++)
    if (dt[slot] == worst && (target.slot < 0 || positions[slot] > positions[target.slot])) target.slot = slot;
  return target;
}

// One part of one kv head's keys, all of which are seen. The part with the new key's place writes it there; the
// others still look at the weights and positions, which `commit` changes.
void BoundedStep::step(const Part& part, const Target& target) const {
  const auto [b, g, number, parts] = part;
  const int64_t pair = b * kv_heads_ + g, first = part_begin(b, parts, number), end = part_begin(b, parts, number + 1);
  if (number == 0) targets_[pair] = target;
  float* angles = scratch(kAngles).get(static_cast<size_t>(d_));
  read_angles(token(b, 0), angles);
  float* weights = weights_ + pair * row_;
  read_floats(io_.dtype, io_.past_dt, cache_row(b, g) * row_ + first, end - first, weights + first);
  if (target.slot >= first && target.slot < end) {
    append_key(b, g, 0, angles, target.slot);
    weights[target.slot] = target.dt;
  }
  attend_part(part, keys(b) - 1, new_queries(b, g, angles));
}

void BoundedStep::commit() const {
  for (int64_t pair = 0; pair < pairs(); pair++) {
    const Target& target = targets_[pair];
    if (target.slot < 0) continue;
    const int64_t b = pair / kv_heads_, at = cache_row(b, pair % kv_heads_) * row_ + target.slot;
    write_floats(io_.dtype, &target.dt, 1, io_.present_dt, at);
    io_.present_position[at] = io_.positions[token(b, 0)];
  }
}

BoundedFill::BoundedFill(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows,
                         const int64_t* used, Arena& arena)
    : io_(io), kv_heads_(parts.config.num_kv_heads), used_(used), static_io_(io) {
  static_io_.mask = nullptr;
  static_io_.cache_position = used_;
  static_io_.bounded = false;
  job_ = make_cached_attention(parts, static_io_, rows, used_, arena);
}

void BoundedFill::commit() const {
  for (int64_t b = 0; b < io_.batch; b++) {
    const int64_t slot = io_.rows ? io_.rows[b].slot : b, first = io_.rows ? io_.rows[b].first : b * io_.sequence;
    for (int64_t g = 0; g < kv_heads_; g++)
      std::copy_n(io_.positions + first, io_.sequence,
                  io_.present_position + (slot * kv_heads_ + g) * io_.slots + used_[b]);
  }
}

}  // namespace doge
