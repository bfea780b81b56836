// Attention of rows that come and go in slots of a pool, in pieces of any length: each has the outputs and the cache
// of the same row alone, fed token by token, to the bit. What is right for one row is test_attention.cc's matter.
#include <cstring>

#include "oracle.h"

using namespace oracle;
using doge::Dtype;

namespace {

struct Shape {
  int64_t heads, kv_heads, d, window, sliding, places, most;  // most: tokens of one piece
  bool bounded;
  Dtype dtype;
  int64_t distinct;  // tokens; few make many ties
};

// What all rows have in common: weights, and what each token projects to.
struct Model {
  Shape c;
  doge::AttentionConfig config;
  doge::AttentionWeights weights;
  std::vector<char> q, k, v;

  explicit Model(const Shape& shape) : c(shape) {
    Random random(static_cast<unsigned>(c.d + 3 * c.window + c.heads));
    config = {c.heads, c.kv_heads, c.d, c.window, c.sliding, 1 / std::sqrt(static_cast<float>(c.d)), 1e-6f};
    weights = {random.normal(c.d), random.normal(c.d), random.normal(c.kv_heads * c.kv_heads * c.d, 0.2f),
               random.normal(c.kv_heads), random.normal(c.kv_heads, 0.5f)};
    q = narrow(random.normal(c.distinct * c.heads * c.d));
    k = narrow(random.normal(c.distinct * c.kv_heads * c.d));
    v = narrow(random.normal(c.distinct * c.kv_heads * c.d));
  }
  std::vector<char> narrow(const Floats& x) const {
    std::vector<char> result(x.size() * doge::bytes_of(c.dtype));
    doge::write_floats(c.dtype, x.data(), static_cast<int64_t>(x.size()), result.data(), 0);
    return result;
  }
};

// A pool of caches.
struct Slots {
  Shape c;
  size_t key_bytes, dt_bytes;  // of one place
  std::vector<char> key, value, dt;
  std::vector<int64_t> position;

  Slots(const Shape& shape, int64_t count)
      : c(shape), key_bytes(static_cast<size_t>(c.d) * doge::bytes_of(c.dtype)), dt_bytes(doge::bytes_of(c.dtype)) {
    const auto places = static_cast<size_t>(count * c.kv_heads * c.places);
    key.assign(places * key_bytes, 0);
    value = key;
    dt.assign(places * dt_bytes, 0);
    position.assign(places, -1);
  }
  size_t first(int64_t slot) const { return static_cast<size_t>(slot * c.kv_heads * c.places); }
  void clear(int64_t slot) { std::fill_n(&position[first(slot)], c.kv_heads * c.places, -1); }
  void take(int64_t slot, const Slots& from, int64_t other) {
    const auto places = static_cast<size_t>(c.kv_heads * c.places);
    std::memcpy(&key[first(slot) * key_bytes], &from.key[from.first(other) * key_bytes], places * key_bytes);
    std::memcpy(&value[first(slot) * key_bytes], &from.value[from.first(other) * key_bytes], places * key_bytes);
    std::memcpy(&dt[first(slot) * dt_bytes], &from.dt[from.first(other) * dt_bytes], places * dt_bytes);
    std::copy_n(&from.position[from.first(other)], places, &position[first(slot)]);
  }
  // What a row of `length` tokens has in `slot`: the other places are nobody's.
  bool holds(int64_t slot, int64_t length, const Slots& other) const {
    const auto used = static_cast<size_t>(std::min(length, c.places));
    for (int64_t g = 0; g < c.kv_heads; g++) {
      const size_t at = first(slot) + static_cast<size_t>(g * c.places), alone = static_cast<size_t>(g * c.places);
      if (std::memcmp(&key[at * key_bytes], &other.key[alone * key_bytes], used * key_bytes) ||
          std::memcmp(&value[at * key_bytes], &other.value[alone * key_bytes], used * key_bytes) ||
          std::memcmp(&dt[at * dt_bytes], &other.dt[alone * dt_bytes], used * dt_bytes))
        return false;
      if (c.bounded && !std::equal(&position[at], &position[at] + c.places, &other.position[alone])) return false;
    }
    return true;
  }
};

struct Row {
  int64_t slot, length;
  Slots alone;
};

// Feeds tokens at positions to `slots`; the rows lie in `rows`. Returns the outputs.
std::vector<char> call(const Model& m, Slots& slots, const std::vector<doge::CallRow>& rows,
                       const std::vector<int64_t>& lengths, const std::vector<int64_t>& ids,
                       const std::vector<int64_t>& positions, doge::Threads& threads, bool ragged) {
  const Shape& c = m.c;
  const size_t size = doge::bytes_of(c.dtype), width = static_cast<size_t>(c.heads * c.d) * size, kv = static_cast<size_t>(c.kv_heads * c.d) * size;
  std::vector<char> q, k, v, output(ids.size() * width);
  Floats cos, sin;
  for (size_t t = 0; t < ids.size(); t++) {
    const auto id = static_cast<size_t>(ids[t]);
    q.insert(q.end(), &m.q[id * width], &m.q[id * width] + width);
    k.insert(k.end(), &m.k[id * kv], &m.k[id * kv] + kv);
    v.insert(v.end(), &m.v[id * kv], &m.v[id * kv] + kv);
    for (int64_t i = 0; i < c.d / 2; i++) {
      const double angle = static_cast<double>(positions[t]) * std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(c.d));
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  const std::vector<char> cosines = m.narrow(cos), sines = m.narrow(sin);
  const std::vector<int64_t> ones(static_cast<size_t>(std::max<int64_t>(c.places, 1)), 1);
  doge::AttentionIO io;
  io.dtype = c.dtype;
  io.batch = static_cast<int64_t>(rows.size());
  io.sequence = rows.front().count;
  io.past = io.slots = c.places;
  if (ragged)
    io.rows = rows.data();
  else
    io.mask = ones.data();
  io.cos = cosines.data();
  io.sin = sines.data();
  io.past_key = io.present_key = slots.key.data();
  io.past_value = io.present_value = slots.value.data();
  io.past_dt = io.present_dt = slots.dt.data();
  if (c.bounded) {
    io.bounded = true;
    io.past_position = io.present_position = slots.position.data();
    io.positions = positions.data();
  } else {
    io.cache_position = lengths.data();
  }
  doge::dynamic_mask_attention(m.config, m.weights, io, q.data(), k.data(), v.data(), output.data(), threads);
  return output;
}

void run(const Shape& c, unsigned seed, int64_t calls) {
  constexpr int64_t kSlots = 6;
  const Model m(c);
  Random random(seed);
  Slots pool(c, kSlots);
  std::vector<Row> rows;
  Pool one(1);
  const std::string name = "d " + std::to_string(c.d) + " window " + std::to_string(c.window) + (c.bounded ? " bounded" : " static") +
                           " sliding " + std::to_string(c.sliding) + " seed " + std::to_string(seed);
  const size_t width = static_cast<size_t>(c.heads * c.d) * doge::bytes_of(c.dtype);
  for (int64_t n = 0; n < calls; n++) {
    // One joins, one leaves, one goes on as two.
    std::vector<int64_t> empty;
    for (int64_t slot = 0; slot < kSlots; slot++)
      if (std::none_of(rows.begin(), rows.end(), [&](const Row& row) { return row.slot == slot; })) empty.push_back(slot);
    if (!empty.empty() && (rows.empty() || random.below(3) == 0)) {
      const int64_t slot = empty[static_cast<size_t>(random.below(static_cast<int64_t>(empty.size())))];
      pool.clear(slot);
      rows.push_back({slot, 0, Slots(c, 1)});
      if (rows.size() > 1 && random.below(2) == 0) {
        const Row& other = rows[static_cast<size_t>(random.below(static_cast<int64_t>(rows.size()) - 1))];
        pool.take(slot, pool, other.slot);
        rows.back() = {slot, other.length, other.alone};
      }
    }
    if (rows.size() > 2 && random.below(6) == 0) rows.erase(rows.begin() + random.below(static_cast<int64_t>(rows.size())));
    std::vector<doge::CallRow> given;
    std::vector<int64_t> lengths, ids, positions, who;
    const bool steps = random.below(3) == 0;
    for (size_t r = 0; r < rows.size(); r++) {
      if (random.below(4) == 0) continue;
      int64_t count = steps || random.below(2) ? 1 : 1 + random.below(random.below(2) ? 5 : c.most);
      if (!c.bounded) count = std::min(count, c.places - rows[r].length);
      if (count < 1) continue;
      given.push_back({static_cast<int64_t>(ids.size()), count, rows[r].slot});
      lengths.push_back(rows[r].length);
      who.push_back(static_cast<int64_t>(r));
      for (int64_t s = 0; s < count; s++) {
        ids.push_back(random.below(c.distinct));
        positions.push_back(rows[r].length + s);
      }
    }
    if (given.empty()) continue;
    Pool threads(static_cast<size_t>(1 + random.below(3)));
    const std::vector<char> got = call(m, pool, given, lengths, ids, positions, threads, true);
    for (size_t i = 0; i < given.size(); i++) {
      Row& row = rows[static_cast<size_t>(who[i])];
      bool same = true;
      for (int64_t s = 0; s < given[i].count; s++, row.length++) {
        const auto t = static_cast<size_t>(given[i].first + s);
        const std::vector<char> expected = call(m, row.alone, {{0, 1, 0}}, {row.length}, {ids[t]}, {positions[t]}, one, false);
        same = same && std::memcmp(expected.data(), &got[t * width], width) == 0;
      }
      expect(same, name + ", call " + std::to_string(n) + ": a row of " + std::to_string(given[i].count) + " tokens has another output");
      expect(pool.holds(row.slot, row.length, row.alone), name + ", call " + std::to_string(n) + ": another cache");
    }
  }
}

}  // namespace

int main() {
  const std::vector<Shape> shapes = {
      {2, 1, 16, 1000, 0, 90, 30, false, Dtype::float32, 50},
      {4, 2, 20, 30, 0, 700, 150, false, Dtype::float32, 1000},   // beyond the window, head_dim not whole vectors
      {4, 1, 8, 30, 40, 400, 60, false, Dtype::float32, 20},      // sliding
      {2, 2, 64, 2000, 0, 900, 400, false, Dtype::float16, 500},  // several splits
      {2, 1, 16, 40, 0, 40, 25, true, Dtype::float32, 1000},
      {4, 2, 8, 70, 0, 70, 100, true, Dtype::float32, 6},         // ties
      {2, 1, 32, 300, 0, 300, 280, true, Dtype::float16, 3000},
      {6, 3, 24, 9, 0, 9, 12, true, Dtype::float32, 40},          // pieces longer than the window
  };
  for (const Shape& shape : shapes)
    for (unsigned seed : {1u, 2u, 3u}) run(shape, seed, 25);
  return finish(doge::instruction_set());
}
