// Dynamic mask attention against the oracle: schedules of calls, every kind of cache, padding, ties, windows.
#include "oracle.h"

#include <cstring>

using namespace oracle;
using doge::Dtype;

namespace {

struct Case {
  int64_t heads, kv_heads, d, window, sliding, batch;
  std::vector<int64_t> steps, padding;
  int tokens;  // distinct values; few make many ties
  float A;
};

// `bounded` is a cache in place, `bounded_apart` one that each call writes anew, growing until it is full.
enum class Kind { growing, fixed, bounded, bounded_apart };

void run(const Case& c, Kind kind, size_t threads, double limit, Dtype dtype = Dtype::float32, bool tell_keys = true) {
  const bool is_static = kind == Kind::fixed, apart = kind == Kind::bounded_apart;
  const bool is_bounded = kind == Kind::bounded || apart, in_place = is_static || kind == Kind::bounded;
  tell_keys = tell_keys && !is_bounded;
  Random random(static_cast<unsigned>(c.heads * 7 + c.d + c.window + c.sliding));
  AttentionCase a;
  a.config = {c.heads, c.kv_heads, c.d, c.window, c.sliding, 1 / std::sqrt(static_cast<float>(c.d)), 1e-6f};
  const int64_t width = c.heads * c.d, kv_width = c.kv_heads * c.d;
  a.weights = {random.normal(c.d), random.normal(c.d), random.normal(c.kv_heads * kv_width, 0.2f), random.normal(c.kv_heads), {}};
  for (int64_t g = 0; g < c.kv_heads; g++) a.weights.A.push_back(c.A * (g % 2 ? -1.0f : 1.0f));
  const int64_t total = std::accumulate(c.steps.begin(), c.steps.end(), int64_t{0}), most = total + 5;
  const int64_t slots = is_bounded ? std::min(c.window, total) : most;
  // The same token has the same projections wherever it stands; its rotation differs.
  const Floats table_q = random.normal(c.tokens * width), table_k = random.normal(c.tokens * kv_width);
  Floats table_v = random.normal(c.tokens * kv_width);
  if (dtype == Dtype::float16)
    for (float& x : table_v) x = doge::half_to_float(doge::float_to_half(x));
  std::vector<int64_t> ids(static_cast<size_t>(c.batch * total));
  for (int64_t& id : ids) id = random.below(c.tokens);

  Cache cache;
  cache.keys.resize(static_cast<size_t>(c.batch * c.kv_heads));
  cache.values = cache.keys;
  const size_t size = doge::bytes_of(dtype);
  const auto pairs = static_cast<size_t>(c.batch * c.kv_heads);
  std::vector<char> keys, values, weights;
  std::vector<int64_t> positions;
  if (in_place) {
    positions.assign(pairs * static_cast<size_t>(slots), -1);
    keys.assign(pairs * static_cast<size_t>(slots * c.d) * size, 0);
    values = keys;
    weights.assign(pairs * static_cast<size_t>(slots) * size, 0);
  }
  Pool pool(threads);
  int64_t at = 0;
  for (int64_t n : c.steps) {
    const int64_t row = is_static ? slots : at + n, rows = c.batch * n;
    const int64_t past = in_place ? slots : is_bounded ? std::min(at, c.window) : at;
    const int64_t present = in_place ? slots : is_bounded ? std::min(past + n, c.window) : at + n;
    std::vector<int64_t> mask(static_cast<size_t>(c.batch * row), 0), full(static_cast<size_t>(c.batch * (at + n)));
    for (int64_t b = 0; b < c.batch; b++)
      for (int64_t j = 0; j < at + n; j++)
        full[static_cast<size_t>(b * (at + n) + j)] = mask[static_cast<size_t>(b * row + j)] = j >= c.padding[static_cast<size_t>(b)];
    Floats q, k, v, cos, sin;
    for (int64_t b = 0; b < c.batch; b++)
      for (int64_t s = at; s < at + n; s++) {
        const int64_t id = ids[static_cast<size_t>(b * total + s)];
        q.insert(q.end(), table_q.begin() + id * width, table_q.begin() + (id + 1) * width);
        k.insert(k.end(), table_k.begin() + id * kv_width, table_k.begin() + (id + 1) * kv_width);
        v.insert(v.end(), table_v.begin() + id * kv_width, table_v.begin() + (id + 1) * kv_width);
        for (int64_t i = 0; i < c.d / 2; i++) {
          const double angle = static_cast<double>(s) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(c.d));
          cos.push_back(static_cast<float>(std::cos(angle)));
          sin.push_back(static_cast<float>(std::sin(angle)));
        }
      }
    std::vector<bool> expected_keep;
    const Doubles expected = attention(a, cache, c.batch, n, Doubles(q.begin(), q.end()), Doubles(k.begin(), k.end()),
                                       Doubles(v.begin(), v.end()), cos, sin, full, &expected_keep, dtype);
    const auto narrow = [&](const Floats& x) {
      std::vector<char> result(x.size() * size);
      doge::write_floats(dtype, x.data(), static_cast<int64_t>(x.size()), result.data(), 0);
      return result;
    };
    const std::vector<char> qn = narrow(q), kn = narrow(k), vn = narrow(v), cn = narrow(cos), sn = narrow(sin);
    std::vector<char> output(qn.size()), new_keys(in_place ? 0 : pairs * static_cast<size_t>(present * c.d) * size), new_values(new_keys.size());
    std::vector<char> new_weights(apart ? pairs * static_cast<size_t>(present) * size : 0);
    std::vector<int64_t> new_positions(apart ? pairs * static_cast<size_t>(present) : 0), given, own;
    for (int64_t b = 0; b < c.batch; b++)
      for (int64_t s = at; s < at + n; s++) {
        own.push_back(s >= c.padding[static_cast<size_t>(b)]);
        given.push_back(std::max<int64_t>(0, s - c.padding[static_cast<size_t>(b)]));
      }
    std::vector<int64_t> position(static_cast<size_t>(c.batch), at);
    const int64_t origin = is_static || !c.sliding ? 0 : std::max<int64_t>(0, at - c.sliding + 1);
    std::vector<char> keep(static_cast<size_t>(pairs) * static_cast<size_t>(n * (row - origin)), 2);
    doge::AttentionIO io;
    io.dtype = dtype;
    io.batch = c.batch;
    io.sequence = n;
    io.past = past;
    io.mask = is_bounded ? own.data() : mask.data();
    io.cos = cn.data();
    io.sin = sn.data();
    io.past_key = keys.data();
    io.past_value = values.data();
    io.present_key = in_place ? keys.data() : new_keys.data();
    io.present_value = in_place ? values.data() : new_values.data();
    if (is_bounded) {
      io.bounded = true;
      io.slots = present;
      io.positions = given.data();
      io.past_position = positions.data();
      io.present_position = apart ? new_positions.data() : positions.data();
      io.past_dt = weights.data();
      io.present_dt = apart ? new_weights.data() : weights.data();
    }
    if (tell_keys) io.keep = reinterpret_cast<bool*>(keep.data());
    if (is_static) {
      io.past_dt = io.present_dt = weights.data();
      io.cache_position = position.data();
    }
    doge::dynamic_mask_attention(a.config, a.weights, io, qn.data(), kn.data(), vn.data(), output.data(), pool);
    if (!in_place) {
      keys.swap(new_keys);
      values.swap(new_values);
    }
    if (apart) {
      weights.swap(new_weights);
      positions.swap(new_positions);
    }
    Floats got(output.size() / size);
    doge::read_floats(dtype, output.data(), 0, static_cast<int64_t>(got.size()), got.data());
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
      if (!full[static_cast<size_t>(r / n * (at + n) + at + r % n)]) continue;  // a padding query averages over all
      for (int64_t i = 0; i < width; i++)
        worst = std::max(worst, std::fabs(got[static_cast<size_t>(r * width + i)] - expected[static_cast<size_t>(r * width + i)]));
    }
    const std::string name = "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " d " + std::to_string(c.d) +
                             " window " + std::to_string(c.window) + " sliding " + std::to_string(c.sliding) + " at " +
                             std::to_string(at) + " + " + std::to_string(n) + 
                             (is_bounded ? apart ? " bounded apart" : " bounded" : is_static ? " static" : " growing");
    expect(worst <= limit, name + ": " + std::to_string(worst));
    if (tell_keys && dtype == Dtype::float32) {
      bool same = true;
      for (int64_t p = 0; p < static_cast<int64_t>(pairs) * n; p++)
        for (int64_t j = origin; j < at + n; j++)
          same = same && static_cast<bool>(keep[static_cast<size_t>(p * (row - origin) + j - origin)]) ==
                             expected_keep[static_cast<size_t>(p * (at + n) + j)];
      expect(same, name + ": other keys are kept");
    }
    if (is_bounded && dtype == Dtype::float32) {
      bool same = true;
      for (size_t p = 0; p < pairs; p++) {
        // What the last query saw is what there is to keep.
        const int64_t padding = c.padding[p / static_cast<size_t>(c.kv_heads)];
        std::vector<int64_t> held, wanted;
        for (int64_t j = 0; j < present; j++)
          if (positions[p * static_cast<size_t>(present) + static_cast<size_t>(j)] >= 0)
            held.push_back(positions[p * static_cast<size_t>(present) + static_cast<size_t>(j)]);
        for (int64_t j = 0; j < at + n; j++)
          if (expected_keep[(p * static_cast<size_t>(n) + static_cast<size_t>(n) - 1) * static_cast<size_t>(at + n) + static_cast<size_t>(j)])
            wanted.push_back(j - padding);
        std::sort(held.begin(), held.end());
        same = same && held == wanted;
      }
      expect(same, name + ": other keys are held");
    }
    at += n;
  }
}

}  // namespace

int main() {
  const std::vector<Case> cases = {
      {2, 1, 16, 8, 0, 1, {1, 1, 1}, {0}, 50, 0.7f},
      {2, 1, 128, 8, 0, 1, {7, 1, 1, 1, 1, 9}, {0}, 1000, 0.7f},
      {4, 2, 16, 8, 0, 2, {24, 1, 1, 1}, {0, 3}, 1000, 0.5f},
      {4, 2, 16, 12, 0, 3, {5, 12, 3, 12, 1, 1}, {0, 2, 5}, 6, 0.5f},
      {4, 4, 8, 12, 0, 2, {15, 1, 1, 1, 1}, {0, 4}, 3, 0.0f},  // A = 0: every key ties
      {8, 1, 10, 9, 0, 1, {30, 1, 2, 3, 4, 5}, {0}, 20, 1.0f},
      {6, 3, 24, 16, 9, 2, {20, 1, 1, 5, 1}, {0, 2}, 10, 0.5f},
      {4, 2, 16, 5, 9, 2, {20, 1, 1, 5, 1}, {0, 2}, 4, 0.5f},
      {4, 1, 64, 100, 0, 1, {300, 1, 1, 290, 1, 3}, {0}, 5000, 0.3f},
      {2, 2, 96, 600, 0, 1, {513, 1, 1, 300, 1}, {0}, 40, 0.3f},
      {2, 1, 256, 4096, 0, 1, {70, 1}, {0}, 1000, 0.3f},
      {4, 2, 8, 300, 0, 2, {20, 270, 1, 1, 1, 5, 1, 1, 1, 1, 40, 1}, {0, 25}, 7, 0.4f},
      {2, 1, 16, 6, 0, 3, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1}, {0, 2, 4}, 3, 0.5f},
  };
  for (const Case& c : cases)
    for (Kind kind : {Kind::growing, Kind::fixed, Kind::bounded, Kind::bounded_apart})
      for (size_t threads : {1, 3}) {
        if (c.sliding > 0 && (kind == Kind::bounded || kind == Kind::bounded_apart)) continue;
        if (kind == (threads == 1 ? Kind::bounded : Kind::bounded_apart)) continue;  // one number of threads each
        run(c, kind, threads, 2e-5);
        // A step in place takes another way where nobody asks which keys it kept.
        if (kind == Kind::fixed) run(c, kind, threads, 2e-5, Dtype::float32, false);
        if (c.tokens >= 1000 && threads == 1) run(c, kind, threads, 2e-2, Dtype::float16);
      }
  const doge::AttentionConfig odd{3, 2, 8, 4, 0, 1.0f, 1e-6f};
  expect(throws([&] { Pool pool(1); doge::dynamic_mask_attention(odd, {}, {}, nullptr, nullptr, nullptr, nullptr, pool); }),
         "heads that kv heads do not divide are refused");
  return finish(doge::instruction_set());
}
