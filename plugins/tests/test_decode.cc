// Several tokens in one team against one step of layers and head after the other: the same bits, whoever comes late.
#include <chrono>

#include "models.h"

using namespace oracle;
using doge::Dtype;

namespace {

// Threads of which each starts later than the one before; `together`: or, on one thread, when that one is done.
struct Late final : doge::Threads {
  size_t n;
  bool together;
  Late(size_t count, bool together) : n(count), together(together) {}
  void run(void (*task)(void*, size_t), void* argument, size_t count) override {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; i++) {
      threads.emplace_back([=] {
        if (together) std::this_thread::sleep_for(std::chrono::microseconds(150 * i));
        task(argument, i);
      });
      if (!together) threads.back().join();
    }
    for (auto& thread : threads)
      if (thread.joinable()) thread.join();
  }
  size_t count() const override { return n; }
};

struct Cache {
  bool bounded;
  Floats key, value, dt;
  std::vector<int64_t> mask, slot, position;
  Cache(int64_t batch, int64_t slots, bool bounded)
      : bounded(bounded), key(OwnLayers::count * batch * OwnLayers::kv_heads * slots * OwnLayers::d), value(key.size()),
        dt(key.size() / OwnLayers::d), mask(batch * (slots + 100), 1), slot(batch), position(dt.size(), -1) {}
  std::vector<doge::AttentionIO> io(int64_t batch, int64_t sequence, int64_t slots) {
    std::vector<doge::AttentionIO> io(OwnLayers::count);
    for (size_t layer = 0; layer < io.size(); layer++) {
      io[layer].batch = batch;
      io[layer].sequence = sequence;
      io[layer].past = slots;
      io[layer].mask = mask.data();
      io[layer].past_key = io[layer].present_key = &key[layer * key.size() / io.size()];
      io[layer].past_value = io[layer].present_value = &value[layer * value.size() / io.size()];
      io[layer].past_dt = io[layer].present_dt = &dt[layer * dt.size() / io.size()];
      if (bounded) {
        io[layer].bounded = true;
        io[layer].slots = slots;
        io[layer].past_position = io[layer].present_position = &position[layer * position.size() / io.size()];
      } else {
        io[layer].cache_position = slot.data();
      }
    }
    return io;
  }
};

// A random model, and what it is made of.
struct Model {
  OwnLayers own;
  doge::Matrix table;
  doge::DecoderLayers layers;
  doge::Head head;
  Floats frequencies;
  doge::RotaryAngles angles;

  Model(Random& random, Dtype dtype, int64_t vocab, int64_t block)
      : own(random, dtype, block), table(own.matrix(random, dtype, vocab, OwnLayers::hidden, block)),
        layers(own.config, own.weights),
        head(random.normal(OwnLayers::hidden), 1e-6f, own.matrix(random, dtype, vocab, OwnLayers::hidden, block), true),
        frequencies(turning()), angles({}, frequencies, {}, {}) {}

 private:
  static Floats turning() {
    Floats frequencies(OwnLayers::d / 2);
    for (size_t i = 0; i < frequencies.size(); i++) frequencies[i] = std::pow(1e4f, -static_cast<float>(i) / frequencies.size());
    return frequencies;
  }
};

void run(Dtype dtype, int64_t block, int64_t batch, int64_t sequence, doge::Threads& threads, bool bounded = false) {
  constexpr int64_t vocab = 700, steps = 80, hidden = OwnLayers::hidden;  // beyond the window of 60
  const int64_t slots = bounded ? 60 : 90;
  Random random(static_cast<unsigned>(7 + batch));
  const Model model(random, dtype, vocab, block);
  const auto& [own, table, layers, head, frequencies, angles] = model;
  std::vector<int64_t> ids(static_cast<size_t>(batch * sequence)), positions(ids.size());
  for (size_t i = 0; i < ids.size(); i++) {
    ids[i] = random.below(vocab);
    positions[i] = static_cast<int64_t>(i) % sequence;
  }
  const std::string name = "dtype " + std::to_string(static_cast<int>(dtype)) + ", " + std::to_string(batch) + " rows of " +
                           std::to_string(sequence) + ", " + std::to_string(threads.count()) + " threads" +
                           (bounded ? ", bounded" : "");

  Cache cache(batch, slots, bounded);
  doge::DecodeCall call;
  call.io = cache.io(batch, sequence, slots);
  call.ids = ids.data();
  call.positions = positions.data();
  call.steps = steps;
  std::vector<int64_t> got(static_cast<size_t>(batch * steps));
  Floats logits(got.size());
  call.token_ids = got.data();
  call.token_logits = logits.data();
  doge::decode_tokens(table, angles, layers, head, call, threads);

  Cache other(batch, slots, bounded);
  Pool pool(1);
  for (int64_t step = 0; step < steps; step++) {
    const int64_t length = step == 0 ? sequence : 1, tokens = batch * length;
    Floats states(static_cast<size_t>(tokens * hidden)), made(states.size());
    Floats cos(static_cast<size_t>(tokens) * frequencies.size()), sin(cos.size());
    doge::token_embedding(table, Dtype::float32, tokens, ids.data(), states.data());
    angles.run(Dtype::float32, tokens, positions.data(), cos.data(), sin.data());
    auto io = other.io(batch, length, slots);
    for (auto& each : io) {
      each.cos = cos.data();
      each.sin = sin.data();
      each.positions = positions.data();
    }
    layers.run(io.data(), states.data(), made.data(), pool);
    std::vector<int64_t> best(static_cast<size_t>(batch));
    Floats values(best.size());
    head.top_tokens(Dtype::float32, batch, length, made.data(), 1, best.data(), values.data(), pool);
    for (int64_t row = 0; row < batch; row++) {
      expect(got[static_cast<size_t>(row * steps + step)] == best[static_cast<size_t>(row)], name + ": another token at step " + std::to_string(step));
      expect(logits[static_cast<size_t>(row * steps + step)] == values[static_cast<size_t>(row)], name + ": another logit at step " + std::to_string(step));
      other.slot[static_cast<size_t>(row)] += length;
    }
    ids = best;
    positions.assign(static_cast<size_t>(batch), sequence + step);
  }
  expect(cache.key == other.key && cache.value == other.value && cache.dt == other.dt && cache.position == other.position, name + ": another cache");
}

// Rows of a ragged call, each in a slot of a pool, against each alone, for several steps.
void run_ragged(Dtype dtype, int64_t block, const std::vector<int64_t>& counts, doge::Threads& threads, bool bounded) {
  constexpr int64_t vocab = 300, steps = 4, slots = 7;
  const int64_t places = bounded ? 60 : 120;  // beyond the window of 60
  Random random(static_cast<unsigned>(counts.size()) + 11);
  const Model model(random, dtype, vocab, block);
  const auto& [own, table, layers, head, frequencies, angles] = model;
  std::vector<doge::CallRow> rows;
  std::vector<int64_t> ids, positions;
  for (size_t r = 0; r < counts.size(); r++) {
    rows.push_back({static_cast<int64_t>(ids.size()), counts[r], slots - 1 - 2 * static_cast<int64_t>(r)});
    for (int64_t s = 0; s < counts[r]; s++) {
      ids.push_back(random.below(vocab));
      positions.push_back(s);
    }
  }
  const auto batch = static_cast<int64_t>(rows.size());
  std::vector<int64_t> tokens(static_cast<size_t>(batch * steps));
  Floats logits(tokens.size());
  Cache pool(slots, places, bounded);
  doge::DecodeCall call;
  call.io = pool.io(batch, counts[0], places);
  for (doge::AttentionIO& io : call.io) {
    io.rows = rows.data();
    io.mask = nullptr;
  }
  call.ids = ids.data();
  call.positions = positions.data();
  call.steps = steps;
  call.token_ids = tokens.data();
  call.token_logits = logits.data();
  doge::decode_tokens(table, angles, layers, head, call, threads);

  const std::string name = "ragged, dtype " + std::to_string(static_cast<int>(dtype)) + ", " + std::to_string(batch) + " rows, " +
                           std::to_string(threads.count()) + " threads" + (bounded ? ", bounded" : "");
  Pool one(1);
  for (size_t r = 0; r < rows.size(); r++) {
    Cache alone(1, places, bounded);
    std::vector<int64_t> best(steps);
    Floats values(steps);
    call.io = alone.io(1, counts[r], places);
    call.ids = &ids[static_cast<size_t>(rows[r].first)];
    call.positions = &positions[static_cast<size_t>(rows[r].first)];
    call.token_ids = best.data();
    call.token_logits = values.data();
    doge::decode_tokens(table, angles, layers, head, call, one);
    expect(std::equal(best.begin(), best.end(), &tokens[r * steps]) && std::equal(values.begin(), values.end(), &logits[r * steps]),
           name + ": row " + std::to_string(r) + " is not what it is alone");
    const size_t each = alone.dt.size() / OwnLayers::count;  // places of a slot in a layer
    for (size_t layer = 0; layer < OwnLayers::count; layer++) {
      const size_t at = (layer * slots + static_cast<size_t>(rows[r].slot)) * each;
      expect(std::equal(&pool.key[at * OwnLayers::d], &pool.key[at * OwnLayers::d] + each * OwnLayers::d, &alone.key[layer * each * OwnLayers::d]) &&
                 std::equal(&pool.dt[at], &pool.dt[at] + each, &alone.dt[layer * each]) &&
                 std::equal(&pool.position[at], &pool.position[at] + each, &alone.position[layer * each]),
             name + ": row " + std::to_string(r) + " has another cache");
    }
  }
}

// No position comes after the last one that an integer holds.
void run_at_the_last_position() {
  constexpr int64_t slots = 60, steps = 3, last = std::numeric_limits<int64_t>::max();
  Random random(1);
  OwnLayers own(random, Dtype::float32, 0);
  const doge::Matrix table = own.matrix(random, Dtype::float32, 50, OwnLayers::hidden, 0);
  const doge::DecoderLayers layers(own.config, own.weights);
  const doge::Head head(random.normal(OwnLayers::hidden), 1e-6f, own.matrix(random, Dtype::float32, 50, OwnLayers::hidden, 0), true);
  doge::RotaryConfig config;
  config.limit = 9;
  const Floats frequencies(OwnLayers::d / 2, 1.0f), longer(frequencies.size(), 0.5f);
  const doge::RotaryAngles angles(config, frequencies, longer, {});
  Cache cache(1, slots, true);
  doge::DecodeCall call;
  call.io = cache.io(1, 1, slots);
  const int64_t id = 3;
  call.ids = &id;
  call.positions = &last;
  call.steps = steps;
  std::vector<int64_t> tokens(steps);
  Floats logits(steps);
  call.token_ids = tokens.data();
  call.token_logits = logits.data();
  Pool pool(2);
  doge::decode_tokens(table, angles, layers, head, call, pool);
  for (size_t at = 0; at < cache.position.size(); at++)
    expect(cache.position[at] == (static_cast<int64_t>(at) % slots < steps ? last : -1), "a position after the last one");
}

}  // namespace

int main() {
  run_at_the_last_position();
  for (size_t count : {1, 2, 3}) {
    Pool pool(count);
    for (int64_t batch : {1, 2, 3})
      for (int64_t sequence : {1, 2, 7})
        for (bool bounded : {false, true}) run(Dtype::float32, 0, batch, sequence, pool, bounded);
    for (bool bounded : {false, true}) {
      run_ragged(Dtype::float32, 0, {1, 7, 70}, pool, bounded);  // the last one drops keys of a bounded cache
      run_ragged(Dtype::int8, 64, {2, 1}, pool, bounded);
      run_ragged(Dtype::int8, 64, {1, 1, 1, 1}, pool, bounded);
    }
    run(Dtype::int8, 64, 1, 5, pool);
    run(Dtype::int4, 32, 2, 1, pool);
  }
  for (bool together : {true, false}) {
    Late late(4, together);
    for (bool bounded : {false, true}) run(Dtype::float32, 0, 1, 5, late, bounded);
    run(Dtype::int8, 64, 3, 1, late);
  }
  return finish(doge::instruction_set());
}
