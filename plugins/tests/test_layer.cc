// Whole layers, dense and with experts, of every kind of weight, against the oracle put together.
#include "models.h"

#include <memory>

#include "../kernels/experts.h"

using namespace oracle;
using doge::Dtype;

namespace {

struct Case {
  int64_t hidden, inner, heads, kv_heads, keys, chosen, batch;
  std::vector<int64_t> steps;
  Dtype dtype;
  int64_t block;
  std::string activation;
  bool bias, per_token, norm;
};

Doubles wide(const Floats& x) { return Doubles(x.begin(), x.end()); }

void run(const Case& c, size_t threads, double limit) {
  Random random(static_cast<unsigned>(c.hidden + c.inner * 3 + c.keys));
  const int64_t d = c.hidden / c.heads, width = c.heads * d, kv = c.kv_heads * d, G = c.kv_heads;
  OwnMatrix q, k, v, o, gate, up, down, router, down_embed, up_embed;
  q.draw(random, c.dtype, width, c.hidden, c.block);
  k.draw(random, c.dtype, kv, c.hidden, c.block);
  v.draw(random, c.dtype, kv, c.hidden, c.block);
  o.draw(random, c.dtype, c.hidden, width, c.block);
  gate.draw(random, c.dtype, c.inner, c.hidden, c.block);
  up.draw(random, c.dtype, c.inner, c.hidden, c.block);
  down.draw(random, c.dtype, c.hidden, c.inner, c.block);
  auto bias = [&](int64_t n) { return c.bias ? random.normal(n) : Floats{}; };
  doge::LayerWeights w;
  w.q_proj = {q.matrix, bias(width)};
  w.k_proj = {k.matrix, bias(kv)};
  w.v_proj = {v.matrix, bias(kv)};
  w.o_proj = {o.matrix, bias(c.hidden)};
  w.gate_proj = {gate.matrix, bias(c.inner)};
  w.up_proj = {up.matrix, bias(c.inner)};
  w.down_proj = {down.matrix, bias(c.hidden)};
  w.input_layernorm = random.normal(c.hidden);
  w.post_attention_layernorm = random.normal(c.hidden);
  w.input_residual = random.normal(c.hidden);
  w.post_attention_residual = random.normal(c.hidden);
  w.attention = {random.normal(d), random.normal(d), random.normal(G * kv, 0.02f), random.normal(G), random.normal(G, 0.5f)};
  doge::LayerConfig config;
  // Where activations are rounded to 16 bits, two keys may change places at the window: it stays open there.
  config.attention = {c.heads, c.kv_heads, d, c.block ? 1000 : 8, 0, 1 / std::sqrt(static_cast<float>(d)), 1e-6f};
  config.activation = doge::activation_from_name(c.activation);
  if (c.keys) {
    router.draw(random, Dtype::float32, 2 * c.keys, c.hidden);
    down_embed.draw(random, c.dtype, c.keys * c.keys + 3, c.hidden, c.block);
    up_embed.draw(random, c.dtype, c.keys * c.keys + 3, c.hidden, c.block);
    w.router_gate = router.matrix;
    w.down_embed = down_embed.matrix;
    w.up_embed = up_embed.matrix;
    config.routing = {c.keys, c.chosen, c.per_token, c.norm};
  }
  const doge::DecoderLayers layer(config, {w});
  AttentionCase attention_case{config.attention, w.attention};
  Cache cache;
  cache.keys.resize(static_cast<size_t>(c.batch * G));
  cache.values = cache.keys;
  Pool pool(threads);
  Floats keys, values;
  int64_t at = 0;
  for (int64_t n : c.steps) {
    const int64_t rows = c.batch * n, total = at + n;
    const Floats x = random.normal(rows * c.hidden);
    Floats cos, sin;
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < d / 2; i++) {
        const double angle = static_cast<double>(at + row % n) / static_cast<double>(1 + i);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    const std::vector<int64_t> mask(static_cast<size_t>(c.batch * total), 1);
    Floats present_keys(static_cast<size_t>(c.batch * kv * total)), present_values(present_keys.size());
    Floats got(static_cast<size_t>(rows * c.hidden)), again(got.size());
    doge::AttentionIO io;
    io.batch = c.batch;
    io.sequence = n;
    io.past = at;
    io.mask = mask.data();
    io.cos = cos.data();
    io.sin = sin.data();
    io.past_key = keys.data();
    io.past_value = values.data();
    io.present_key = present_keys.data();
    io.present_value = present_values.data();
    layer.run(&io, x.data(), got.data(), pool);
    Pool other(threads == 1 ? 4 : 1);
    layer.run(&io, x.data(), again.data(), other);
    expect(got == again, "the result depends on the number of threads");

    Doubles h = wide(x);
    for (int64_t r = 0; r < rows; r++) rms_norm(&h[static_cast<size_t>(r * c.hidden)], c.hidden, w.input_layernorm, config.epsilon);
    const Doubles attended = attention(attention_case, cache, c.batch, n, linear(h, rows, q, w.q_proj.bias),
                                       linear(h, rows, k, w.k_proj.bias), linear(h, rows, v, w.v_proj.bias), cos, sin, mask);
    Doubles middle = linear(attended, rows, o, w.o_proj.bias);
    for (size_t i = 0; i < middle.size(); i++) middle[i] += w.input_residual[i % static_cast<size_t>(c.hidden)] * x[i];
    Doubles y = middle;
    for (int64_t r = 0; r < rows; r++) rms_norm(&y[static_cast<size_t>(r * c.hidden)], c.hidden, w.post_attention_layernorm, config.epsilon);
    Doubles inner = linear(y, rows, gate, w.gate_proj.bias);
    const Doubles ups = linear(y, rows, up, w.up_proj.bias);
    for (size_t i = 0; i < inner.size(); i++) inner[i] = activate(c.activation, inner[i]) * ups[i];
    Doubles expected = linear(inner, rows, down, w.down_proj.bias);
    for (size_t i = 0; i < expected.size(); i++)
      expected[i] += w.post_attention_residual[i % static_cast<size_t>(c.hidden)] * middle[i];
    if (c.keys) {
      const Doubles logits = linear(y, rows, router);
      for (int64_t t = 0; t < rows; t++) {
        const double* first = &logits[static_cast<size_t>(c.per_token ? 2 * t * c.keys : t * c.keys)];
        const double* second = c.per_token ? first + c.keys : &logits[static_cast<size_t>((rows + t) * c.keys)];
        for (const auto& [expert, weight] : route(config.routing, first, second)) {
          double dot = 0;
          for (int64_t i = 0; i < c.hidden; i++)
            dot += y[static_cast<size_t>(t * c.hidden + i)] * down_embed.values[static_cast<size_t>(expert * c.hidden + i)];
          for (int64_t i = 0; i < c.hidden; i++)
            expected[static_cast<size_t>(t * c.hidden + i)] +=
                activate(c.activation, dot) * weight * up_embed.values[static_cast<size_t>(expert * c.hidden + i)];
        }
      }
    }
    const double far = distance(got, expected);
    expect(far <= limit, "hidden " + std::to_string(c.hidden) + " experts " + std::to_string(c.keys) + " dtype " +
                             std::to_string(static_cast<int>(c.dtype)) + " at " + std::to_string(at) + " + " + std::to_string(n) +
                             ": " + std::to_string(far));
    keys = present_keys;
    values = present_values;
    at = total;
  }
}

// Layers at once against the same layers one by one, on a cache in place: the same bits.
void several(Dtype dtype, int64_t block, size_t threads) {
  constexpr int64_t slots = 90;
  Random random(11);
  const OwnLayers own(random, dtype, block);
  constexpr int64_t kv_heads = OwnLayers::kv_heads, d = OwnLayers::d, hidden = OwnLayers::hidden;
  constexpr size_t layers = OwnLayers::count;
  std::vector<std::unique_ptr<doge::DecoderLayers>> single;
  for (const doge::LayerWeights& w : own.weights)
    single.push_back(std::make_unique<doge::DecoderLayers>(own.config, std::vector<doge::LayerWeights>{w}));
  const doge::DecoderLayers all(own.config, own.weights);
  expect(all.count() == layers, "all layers are there");
  const size_t keys = kv_heads * slots * d;
  std::vector<Floats> cache(2 * 3 * layers);
  for (size_t i = 0; i < cache.size(); i++) cache[i].assign(i % 3 == 2 ? kv_heads * slots : keys, 0.0f);
  const std::vector<int64_t> mask(slots, 1);
  Pool pool(threads);
  int64_t at = 0;
  for (int64_t n : {5, 1, 1, 2, 40, 1, 1, 13, 1, 1}) {  // the last ones with a window that is full
    const Floats x = random.normal(n * hidden), cos = random.normal(n * d / 2), sin = random.normal(n * d / 2);
    std::vector<doge::AttentionIO> io(2 * layers);
    for (size_t i = 0; i < io.size(); i++) {
      io[i].batch = 1;
      io[i].sequence = n;
      io[i].past = slots;
      io[i].mask = mask.data();
      io[i].cos = cos.data();
      io[i].sin = sin.data();
      io[i].past_key = io[i].present_key = cache[3 * i].data();
      io[i].past_value = io[i].present_value = cache[3 * i + 1].data();
      io[i].past_dt = io[i].present_dt = cache[3 * i + 2].data();
      io[i].cache_position = &at;
    }
    Floats got(x.size()), expected = x, next(x.size());
    all.run(io.data(), x.data(), got.data(), pool);
    for (size_t layer = 0; layer < layers; layer++) {
      single[layer]->run(&io[layers + layer], expected.data(), next.data(), pool);
      expected.swap(next);
    }
    expect(got == expected, "several layers at once say something else at " + std::to_string(at));
    at += n;
  }
  for (size_t i = 0; i < 3 * layers; i++) expect(cache[i] == cache[3 * layers + i], "several layers leave another cache");
}

void rotary() {
  const Floats frequencies = {1.0f, 0.25f}, other = {0.5f, 0.125f}, exponents = {0.0f, 0.5f};
  doge::RotaryConfig config;
  config.scaling = 1.5f;
  const int64_t positions[3] = {0, 3, 9};
  float cos[6], sin[6];
  const auto agree = [&](const Floats& expected, const std::string& what) {
    for (size_t t = 0; t < 3; t++)
      for (size_t i = 0; i < 2; i++) {
        const double angle = static_cast<double>(positions[t]) * expected[i];
        expect(std::fabs(cos[2 * t + i] - 1.5 * std::cos(angle)) < 1e-6 && std::fabs(sin[2 * t + i] - 1.5 * std::sin(angle)) < 1e-6, what);
      }
  };
  doge::RotaryAngles(config, frequencies, {}, {}).run(Dtype::float32, 3, positions, cos, sin);
  agree(frequencies, "rope without a limit");
  for (float limit : {10.0f, 9.0f}) {  // the largest position is 9: a length of 10
    config.limit = limit;
    doge::RotaryAngles(config, frequencies, other, {}).run(Dtype::float32, 3, positions, cos, sin);
    agree(limit < 10 ? other : frequencies, "long rope at " + std::to_string(limit));
  }
  const int64_t last = std::numeric_limits<int64_t>::max();  // nothing comes after it, and it is beyond any limit
  config.limit = 9;
  doge::RotaryAngles(config, frequencies, other, {}).run(Dtype::float32, 1, &last, cos, sin);
  expect(cos[0] == 1.5f * std::cos(static_cast<float>(last) * other[0]), "long rope at the last position");
  config.factor = 4;
  config.offset = 3;
  config.theta = 100;
  config.power = 2;
  const double base = 100 * std::pow(4.0 * 10 / 9 - 3, 2);
  doge::RotaryAngles(config, frequencies, {}, exponents).run(Dtype::float32, 3, positions, cos, sin);
  agree({1.0f, static_cast<float>(std::pow(base, -0.5))}, "dynamic rope");
  expect(throws([&] { doge::RotaryAngles(config, frequencies, {}, {}); }), "a limit without frequencies beyond it is refused");
}

void routing() {
  Random random(3);
  for (int64_t keys : {1, 3, 16, 33, 64, 100, 600})
    for (int64_t chosen : {1, 2, 5, 16, 64, 700})
      for (float step : {0.0f, 1.0f, 1e3f}) {  // 1: many equal logits, of which the first in the order of both wins
        if (chosen > keys * keys) continue;
        const doge::RoutingConfig config{keys, chosen, true, step == 0};
        Floats logits = random.normal(2 * keys), weights(static_cast<size_t>(chosen));
        for (float& x : logits) x = step == 0 ? x : std::round(2 * x) * step;
        std::vector<int64_t> indices(static_cast<size_t>(chosen));
        doge::route(config, logits.data(), logits.data() + keys, indices.data(), weights.data());
        const Doubles halves = wide(logits);
        const auto expected = route(config, halves.data(), halves.data() + keys);
        const std::string name = "routing of " + std::to_string(chosen) + " of " + std::to_string(keys) + "^2, step " + std::to_string(step);
        for (size_t e = 0; e < indices.size(); e++) {
          expect(indices[e] == expected[e].first, name + ": another expert at " + std::to_string(e));
          expect(std::fabs(weights[e] - expected[e].second) <= 1e-6, name + ": another weight at " + std::to_string(e));
        }
        std::fill(logits.begin(), logits.end(), std::nanf(""));
        doge::route(config, logits.data(), logits.data() + keys, indices.data(), weights.data());
        for (int64_t index : indices) expect(index >= 0 && index < keys * keys, "NaN gives an expert that exists");
      }
}

}  // namespace

int main() {
  const std::vector<int64_t> steps = {1, 1, 9, 1, 2, 60, 1};
  const std::vector<Case> cases = {
      {32, 48, 4, 2, 0, 0, 1, steps, Dtype::float32, 0, "silu", false, false, false},
      {64, 100, 4, 1, 0, 0, 2, steps, Dtype::float32, 0, "gelu", true, false, false},
      {64, 128, 4, 4, 0, 0, 3, steps, Dtype::float16, 0, "gelu_new", false, false, false},
      {128, 256, 2, 1, 0, 0, 1, steps, Dtype::int8, 128, "silu", false, false, false},
      {96, 192, 6, 3, 0, 0, 2, steps, Dtype::int8, 96, "relu2", true, false, false},
      {128, 256, 4, 2, 0, 0, 1, steps, Dtype::int4, 32, "silu", false, false, false},
      {64, 64, 4, 2, 8, 5, 1, steps, Dtype::float32, 0, "silu", false, false, false},
      {64, 64, 4, 2, 8, 5, 2, steps, Dtype::float32, 0, "sigmoid", false, true, true},
      {128, 128, 4, 2, 8, 12, 2, steps, Dtype::int8, 64, "silu", false, false, true},
      {128, 128, 4, 2, 5, 25, 1, steps, Dtype::int4, 32, "tanh", false, true, false},
      {64, 64, 4, 2, 6, 4, 1, steps, Dtype::float16, 0, "silu", false, false, false},
  };
  for (const Case& c : cases)
    for (size_t threads : {1, 3}) run(c, threads, c.block ? 1e-3 : 2e-5);
  for (size_t threads : {1, 2, 3}) {
    several(Dtype::float32, 0, threads);
    several(Dtype::int8, 64, threads);
    several(Dtype::int4, 32, threads);
  }
  rotary();
  routing();
  expect(throws([] { doge::activation_from_name("swoosh"); }), "an unknown activation is refused");
  return finish(doge::instruction_set());
}
