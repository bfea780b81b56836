#include "attention_evict.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"

namespace doge {
namespace {

constexpr int64_t kTile = 24;   // query rows of a tile, about
constexpr int64_t kAppend = 8;  // new positions of one chunk

}  // namespace

CallCache::CallCache(const AttentionParts& parts, const AttentionIO& io, const int64_t* used, Arena& arena)
    : call_io(io) {
  const int64_t row = *std::max_element(used, used + io.batch) + io.sequence, pairs = io.batch * parts.config.num_kv_heads;
  const auto take = [&](int64_t numbers) {
    return arena.take((numbers * static_cast<int64_t>(bytes_of(io.dtype)) + 3) / 4);
  };
  if (io.rows) {
    auto* rows = const_cast<CallRow*>(uniform_rows(io.batch, io.sequence, arena));
    for (int64_t b = 0; b < io.batch; b++) rows[b].first = io.rows[b].first;
    call_io.rows = rows;
  }
  call_io.past = row;
  call_io.mask = nullptr;
  call_io.past_key = call_io.present_key = take(pairs * row * parts.config.head_dim);
  call_io.past_value = call_io.present_value = take(pairs * row * parts.config.head_dim);
  call_io.past_dt = call_io.present_dt = take(pairs * row);
  call_io.cache_position = used;
  call_io.bounded = false;
}

BoundedEvict::BoundedEvict(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows,
                           const int64_t* used, Arena& arena)
    : CallCache(parts, io, used, arena), CachedAttention(parts, call_io, rows, used, arena), whole_(io), used_(used),
      tile_rows_(std::max<int64_t>(1, kTile / group_)), tiles_(ceil_div(length_, tile_rows_)),
      panels_(ceil_div(row_, kPanel)), places_(std::min(io.slots, row_)),
      numbers_(reinterpret_cast<int64_t*>(arena.take(2 * pairs() * (places_ + row_ + 3 * length_ + 2)))),
      floats_(arena.take(pairs() * (panels_ * kPanel * d_ + row_ * d_ + row_))) {}

size_t BoundedEvict::width() const { return static_cast<size_t>(std::max<int64_t>(2, pairs() * tiles_)); }

BoundedEvict::Occupants BoundedEvict::occupants(int64_t pair) const {
  int64_t* numbers = numbers_ + pair * (places_ + row_ + 3 * length_ + 2);
  float* floats = floats_ + pair * (panels_ * kPanel * d_ + row_ * d_ + row_);
  Occupants own;
  own.begins = numbers;
  own.keys = own.begins + places_ + 1;
  own.places = own.keys + row_;
  own.at = own.places + length_;
  own.in_use = own.at + length_;
  own.count = own.in_use + length_;
  own.panels = floats;
  own.values = own.panels + panels_ * kPanel * d_;
  own.dt = own.values + row_ * d_;
  return own;
}

void BoundedEvict::run(Team::Worker& worker) const {
  const int64_t pieces = ceil_div(length_, kAppend);
  worker.phase(pairs() + io_.batch * pieces, [&](int64_t c) {
    if (c < pairs()) {
      gather(c / kv_heads_, c % kv_heads_);
      return;
    }
    const int64_t piece = c - pairs(), first = piece % pieces * kAppend;
    for (int64_t g = 0; g < kv_heads_; g++) append(piece / pieces, g, first, std::min(kAppend, length_ - first));
  });
  weigh_new_keys(worker);
  worker.phase(pairs(), [&](int64_t c) { arrange(c / kv_heads_, c % kv_heads_); });
  worker.phase(pairs() * panels_, [&](int64_t c) { lay_out(c / panels_ / kv_heads_, c / panels_ % kv_heads_, c % panels_); });
  worker.phase(pairs() * tiles_, [&](int64_t c) { attend_tile(c % pairs() / kv_heads_, c % pairs() % kv_heads_, c / pairs()); });
  worker.phase(pairs(), [&](int64_t c) { keep(c / kv_heads_, c % kv_heads_); });
}

// The keys that there were, in the order of their places.
void BoundedEvict::gather(int64_t b, int64_t g) const {
  if (used_[b] == 0) return;
  const int64_t slot = whole_.rows ? whole_.rows[b].slot : b;
  const size_t size = bytes_of(io_.dtype), from = static_cast<size_t>((slot * kv_heads_ + g) * whole_.past) * size;
  const size_t to = static_cast<size_t>((b * kv_heads_ + g) * row_) * size, count = static_cast<size_t>(used_[b]) * size;
  const auto copy = [&](const void* source, void* target, size_t each) {
    std::memcpy(static_cast<char*>(target) + to * each, static_cast<const char*>(source) + from * each, count * each);
  };
  copy(whole_.past_key, io_.present_key, static_cast<size_t>(d_));
  copy(whole_.past_value, io_.present_value, static_cast<size_t>(d_));
  copy(whole_.past_dt, io_.present_dt, 1);
}

int64_t BoundedEvict::position(int64_t b, int64_t g, int64_t key) const {
  if (key >= used_[b]) return whole_.positions[token(b, key - used_[b])];
  return whole_.past_position[((whole_.rows ? whole_.rows[b].slot : b) * kv_heads_ + g) * whole_.past + key];
}

// Finds the places of the new keys of one head, as BoundedStep::find_target does of one, and who was where.
void BoundedEvict::arrange(int64_t b, int64_t g) const {
  struct Key {
    float dt;
    int64_t position, place;
  };
  // The worst on top: of equal weights the later, and of one position (the last of all) the lower place.
  const auto better = [](const Key& x, const Key& y) {
    if (x.dt != y.dt) return x.dt > y.dt;
    return x.position != y.position ? x.position < y.position : x.place > y.place;
  };
  thread_local std::vector<Key> held;
  thread_local std::vector<int64_t> next;
  const int64_t pair = b * kv_heads_ + g, used = used_[b];
  const float* dt = weights_ + pair * row_;
  const Occupants own = occupants(pair);
  held.clear();
  next.assign(static_cast<size_t>(places_) + 1, 0);
  int64_t in_use = used;
  bool heap = false;
  for (int64_t place = 0; place < used; place++) {
    held.push_back({dt[place], position(b, g, place), place});
    next[static_cast<size_t>(place)] = 1;
  }
  for (int64_t s = 0; s < length_; s++) {
    Key key{dt[used + s], position(b, g, used + s), -1};
    if (whole_.mask && whole_.mask[b * length_ + s] == 0) {
      // padding: nobody sees it
    } else if (in_use < places_) {
      key.place = in_use++;
      held.push_back(key);
    } else {
      if (!heap) std::make_heap(held.begin(), held.end(), better);
      heap = true;
      if (key.dt > held.front().dt) {  // of equals the earlier stays
        std::pop_heap(held.begin(), held.end(), better);
        key.place = held.back().place;
        held.back() = key;
        std::push_heap(held.begin(), held.end(), better);
      }
    }
    own.places[s] = key.place;
    own.in_use[s] = in_use;
    if (key.place >= 0) next[static_cast<size_t>(key.place)]++;
  }
  *own.count = in_use;
  int64_t total = 0;
  for (int64_t place = 0; place <= places_; place++) {
    const int64_t count = next[static_cast<size_t>(place)];
    own.begins[place] = next[static_cast<size_t>(place)] = total;
    total += count;
  }
  for (int64_t place = 0; place < used; place++) own.keys[next[static_cast<size_t>(place)]++] = place;
  for (int64_t s = 0; s < length_; s++)
    if (own.places[s] >= 0) own.keys[own.at[s] = next[static_cast<size_t>(own.places[s])]++] = used + s;
}

// Occupants [64 * block, ...) as a panel, their values and weights.
void BoundedEvict::lay_out(int64_t b, int64_t g, int64_t block) const {
  const int64_t pair = b * kv_heads_ + g, first = block * kPanel;
  const Occupants own = occupants(pair);
  const int64_t count = std::min(kPanel, own.begins[places_] - first);
  float* panel = own.panels + block * d_ * kPanel;
  float* room = scratch(kRoom).get(static_cast<size_t>(d_));
  for (int64_t j = 0; j < count; j++) {
    const int64_t key = own.keys[first + j];
    const float* from = cached(io_.present_key, b, g, key, 1, room);
    for (int64_t i = 0; i < d_; i++) panel[i * kPanel + j] = from[i];
    const float* value = cached(io_.present_value, b, g, key, 1, room);
    std::memcpy(own.values + (first + j) * d_, value, static_cast<size_t>(d_) * 4);
    own.dt[first + j] = weights_[pair * row_ + key];
  }
  for (int64_t j = std::max<int64_t>(0, count); j < kPanel && count > 0; j++)
    for (int64_t i = 0; i < d_; i++) panel[i * kPanel + j] = 0;
}

void BoundedEvict::attend_tile(int64_t b, int64_t g, int64_t tile) const {
  const Occupants own = occupants(b * kv_heads_ + g);
  const int64_t first = tile * tile_rows_, rows = std::min(tile_rows_, length_ - first) * group_;
  const float* q = queries(b, g, first, rows);
  const int64_t panels = ceil_div(own.begins[places_], kPanel), stride = panels_ * kPanel;
  float* scores = scratch(kScores).get(static_cast<size_t>(rows * stride));
  for (int64_t j = 0; j < panels; j++)
    loops_.dots_panel(rows, d_, q, d_, own.panels + j * d_ * kPanel, parts_.config.scale, scores + j * kPanel, stride);
  // Who is in each place before the tile's first token.
  thread_local std::vector<int64_t> alive;
  alive.assign(own.begins, own.begins + places_);
  for (int64_t s = 0; s < first; s++)
    if (own.places[s] >= 0) alive[static_cast<size_t>(own.places[s])] = own.at[s];
  float* factors = scratch(kFactors).get(static_cast<size_t>(rows));
  const auto size = static_cast<size_t>(rows * (d_ + 2));
  const Running total = fresh(scratch(kAcc).get(size), rows);
  for (int64_t at = 0; at < *own.count; at += kSplit) {
    const Running split = fresh(scratch(kWhole).get(size), rows);
    for (int64_t block = at; block < std::min(at + kSplit, *own.count); block += kBlock) {
      soften(own, tile, rows, block, &alive[static_cast<size_t>(block)], scores, stride, factors, split);
      const int64_t begin = own.begins[block], end = own.begins[std::min(block + kBlock, *own.count)];
      loops_.weighted_sum(rows, end - begin, d_, scores + begin, stride, factors, own.values + begin * d_, d_, split.acc, d_);
    }
    add_all(total, rows, split);
  }
  finish_all(b, g, first * group_, rows, total, rows_.output);
}

// The softmax of the places [block, ...) for the queries of a tile, which is added to `softmax`; p takes the place of
// the scores. `alive`: the occupants before the tile, from `block` on.
void BoundedEvict::soften(const Occupants& own, int64_t tile, int64_t rows, int64_t block, int64_t* alive,
                          float* scores, int64_t stride, float* factors, const Running& softmax) const {
  float p[kBlock], dt[kBlock];
  const int64_t begin = own.begins[block], end = own.begins[std::min(block + kBlock, *own.count)];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = tile * tile_rows_ + r / group_, count = std::clamp<int64_t>(own.in_use[s] - block, 0, kBlock);
    if (r % group_ == 0) {
      if (own.places[s] >= block && own.places[s] < block + kBlock) alive[own.places[s] - block] = own.at[s];
      for (int64_t i = 0; i < count; i++) dt[i] = own.dt[alive[i]];
    }
    float* row = scores + r * stride;
    for (int64_t i = 0; i < count; i++) p[i] = row[alive[i]];
    const float peak = count > 0 ? loops_.apply_mask(count, p, dt, kNone, -1) : kNone;
    std::fill(row + begin, row + end, 0.0f);
    factors[r] = 0;
    if (peak == kNone) continue;
    const float sum = loops_.exponentials(count, p, peak);
    for (int64_t i = 0; i < count; i++) row[alive[i]] = p[i];
    factors[r] = join(peak, sum, softmax, r);
  }
}

// Writes the last occupant of each place into the cache.
void BoundedEvict::keep(int64_t b, int64_t g) const {
  const int64_t pair = b * kv_heads_ + g, slot = whole_.rows ? whole_.rows[b].slot : b;
  const Occupants own = occupants(pair);
  const size_t size = bytes_of(io_.dtype), bytes = static_cast<size_t>(d_) * size;
  const auto first = static_cast<size_t>((slot * kv_heads_ + g) * whole_.slots);
  const auto move = [&](const void* source, void* target, size_t each, int64_t key, int64_t place) {
    std::memcpy(static_cast<char*>(target) + (first + static_cast<size_t>(place)) * each,
                static_cast<const char*>(source) + static_cast<size_t>(pair * row_ + key) * each, each);
  };
  const bool moved = whole_.past_key != whole_.present_key || whole_.past != whole_.slots;
  for (int64_t place = 0; place < *own.count; place++) {
    const int64_t key = own.keys[own.begins[place + 1] - 1];
    if (key < used_[b] && !moved) continue;  // it is there
    const int64_t own_position = position(b, g, key);
    move(io_.present_key, whole_.present_key, bytes, key, place);
    move(io_.present_value, whole_.present_value, bytes, key, place);
    move(io_.present_dt, whole_.present_dt, size, key, place);
    whole_.present_position[first + static_cast<size_t>(place)] = own_position;
  }
  if (!moved) return;
  const auto clear = [&](void* target, size_t each) {
    std::memset(static_cast<char*>(target) + (first + static_cast<size_t>(*own.count)) * each, 0,
                static_cast<size_t>(whole_.slots - *own.count) * each);
  };
  std::fill_n(whole_.present_position + first + *own.count, whole_.slots - *own.count, -1);
  clear(whole_.present_key, bytes);
  clear(whole_.present_value, bytes);
  clear(whole_.present_dt, size);
}

}  // namespace doge
