// Draws of a head against the rule itself, on all its logits: score + noise, sorted, by the C library's logarithm; and
// against the probabilities.
#include "../kernels/sampling.h"
#include "oracle.h"

using namespace oracle;
using doge::Draw;
using doge::Dtype;

namespace {

// Philox 4x32-10, a counter at a time.
void philox(const uint32_t* counter, const uint32_t* key, uint32_t* words) {
  uint32_t x[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53} * x[0], b = uint64_t{0xCD9E8D57} * x[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ k[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ x[3] ^ k[1], static_cast<uint32_t>(a)};
    std::copy_n(next, 4, x);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  std::copy_n(x, 4, words);
}

double noise(const Draw& draw, int64_t position, int64_t id) {
  const uint32_t key[2] = {static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.row)};
  const uint32_t counter[4] = {static_cast<uint32_t>(id / 64 * 16 + id % 16), static_cast<uint32_t>(position),
                               static_cast<uint32_t>(position >> 32), static_cast<uint32_t>(draw.seed >> 32)};
  uint32_t words[4];
  philox(counter, key, words);
  return -std::log(-std::log((words[id % 64 / 16] + 0.5) * 0x1p-32));
}

void the_generator_is_philox() {
  const uint32_t key[2] = {0xA4093822, 0x299F31D0}, counter[4] = {0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344};
  uint32_t words[4], panel[64];
  philox(counter, key, words);
  expect(words[0] == 0xd16cfe09 && words[1] == 0x94fdcceb && words[2] == 0x5001e420 && words[3] == 0x24126ea1, "the oracle");
  doge::isa().random_words(counter[0] - 5, counter + 1, key, panel);
  for (int i = 0; i < 4; i++) expect(panel[16 * i + 5] == words[i], "random_words");
}

// The token that a draw gives of all logits; -1: none is left.
int64_t plain(const Draw& draw, int64_t position, const float* logits, int64_t vocab) {
  std::vector<int64_t> order;
  Floats scores(static_cast<size_t>(vocab));
  for (int64_t id = 0; id < vocab; id++) {
    float x = logits[id];
    if (draw.bias) x += draw.bias[id];
    if (std::find(draw.seen.begin(), draw.seen.end(), id) != draw.seen.end() && draw.repetition_penalty != 1)
      x = x < 0 ? x * draw.repetition_penalty : x / draw.repetition_penalty;
    if (draw.temperature > 0) x /= draw.temperature;
    scores[static_cast<size_t>(id)] = x;
    const bool allowed = !draw.allowed || (draw.allowed[id / 64] >> (id % 64) & 1);
    if (allowed && x > doge::kNone) order.push_back(id);
  }
  if (order.empty()) return -1;
  const auto score = [&](int64_t id) { return scores[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return score(i) > score(j); });
  if (draw.temperature == 0) return order[0];
  size_t left = order.size();
  if (draw.top_k > 0 && draw.top_k < vocab) {
    left = std::min(left, static_cast<size_t>(draw.top_k));
    while (left < order.size() && score(order[left]) == score(order[left - 1])) left++;
  }
  const auto weight = [&](int64_t id) {
    return static_cast<int64_t>(std::exp(static_cast<double>(score(id)) - static_cast<double>(score(order[0]))) * 0x1p40);
  };
  int64_t total = 0, sum = 0;
  for (size_t i = 0; i < left; i++) total += weight(order[i]);
  int64_t best = -1;
  double most = 0;
  for (size_t i = 0; i < left; i++) {
    if (i > 0 && draw.top_p < 1 && !(static_cast<double>(sum) < draw.top_p * static_cast<double>(total))) break;
    if (i > 0 && static_cast<double>(weight(order[i])) < draw.min_p * 0x1p40) break;
    sum += weight(order[i]);
    const double value = score(order[i]) + noise(draw, position, order[i]);
    if (best < 0 || value > most || (value == most && order[i] < best)) {
      best = order[i];
      most = value;
    }
  }
  return best;
}

struct OwnHead {
  OwnMatrix w;
  Floats norm, x, logits;
  int64_t vocab, hidden;
  std::unique_ptr<doge::Head> quick;
  // `tied`: every token has the weights of another one.
  OwnHead(Random& random, Dtype dtype, int64_t vocab, int64_t hidden, int64_t block, int64_t batch, float spread, bool tied)
      : norm(random.normal(hidden)), x(random.normal(batch * hidden)), logits(static_cast<size_t>(batch * vocab)), vocab(vocab), hidden(hidden) {
    w.draw(random, dtype, vocab, hidden, block, spread);
    if (tied && dtype == Dtype::float32)
      for (int64_t token = vocab / 2; token < vocab; token++)
        std::copy_n(w.floats.begin() + (token - vocab / 2) * hidden, hidden, w.floats.begin() + token * hidden);
    Pool pool(1);
    doge::Head(norm, 1e-6f, w.matrix).logits(Dtype::float32, batch, x.data(), logits.data(), pool);
    quick = std::make_unique<doge::Head>(norm, 1e-6f, w.matrix, true);
  }
  void draw(const std::vector<Draw>& draws, const int64_t* positions, size_t threads, int64_t* ids, float* values) const {
    Pool pool(threads);
    const doge::DrawnRows rows(draws, vocab);
    doge::DrawJob job(quick->parts(), Dtype::float32, rows, x.data(), nullptr, positions, ids, values, pool);
    auto body = [&](doge::Team::Worker& worker) { job.run(worker); };
    doge::Team::run(pool, job.width(), body);
  }
};

void run(Dtype dtype, int64_t vocab, int64_t hidden, int64_t block, int64_t batch, float spread, bool tied, unsigned seed) {
  Random random(seed);
  const OwnHead head(random, dtype, vocab, hidden, block, batch, spread, tied);
  const auto one_of = [&](std::initializer_list<double> values) { return *(values.begin() + random.below(static_cast<int64_t>(values.size()))); };
  for (int round = 0; round < 12; round++) {
    std::vector<Draw> draws(static_cast<size_t>(batch));
    std::vector<Floats> biases(draws.size());
    std::vector<std::vector<uint64_t>> masks(draws.size());
    std::vector<int64_t> positions(draws.size()), ids(draws.size());
    Floats values(draws.size());
    for (size_t b = 0; b < draws.size(); b++) {
      Draw& draw = draws[b];
      draw.temperature = static_cast<float>(one_of({0, 0.3, 0.8, 0.8, 1, 3}));
      draw.top_k = static_cast<int64_t>(one_of({0, 0, 0, 1, 7, 50, 300, 100000}));
      draw.top_p = one_of({1, 1, 0.9, 0.5, 0.01, 0});
      draw.min_p = one_of({0, 0, 0, 0.1, 0.6, 1});
      draw.repetition_penalty = static_cast<float>(one_of({1, 1, 1.3, 0.7}));
      draw.seed = static_cast<uint64_t>(random.below(int64_t{1} << 50));
      draw.row = static_cast<uint64_t>(random.below(1000));
      positions[b] = one_of({0, 1}) != 0 ? random.below(int64_t{1} << 40) : random.below(100);
      for (int64_t i = random.below(vocab); i > 0; i -= 3) draw.seen.push_back(random.below(vocab));
      if (random.below(3) == 0) {
        biases[b].assign(static_cast<size_t>(vocab), 0);
        for (int i = 0; i < 20; i++)
          biases[b][static_cast<size_t>(random.below(vocab))] = static_cast<float>(one_of({1, -2, 4.5, -1e30, doge::kNone}));
        draw.bias = biases[b].data();
      }
      if (random.below(3) == 0) {
        masks[b].assign(static_cast<size_t>((vocab + 63) / 64), 0);
        for (int64_t i = one_of({0, 1}) != 0 ? 3 : vocab / 2; i > 0; i--) {
          const int64_t id = random.below(vocab);
          masks[b][static_cast<size_t>(id / 64)] |= uint64_t{1} << id % 64;
        }
        draw.allowed = masks[b].data();
      }
    }
    for (size_t threads : {1, 2, 3}) {
      head.draw(draws, positions.data(), threads, ids.data(), values.data());
      for (size_t b = 0; b < draws.size(); b++) {
        const float* logits = &head.logits[b * static_cast<size_t>(vocab)];
        const int64_t expected = plain(draws[b], positions[b], logits, vocab);
        const Draw& d = draws[b];
        expect(expected < 0 ? values[b] == doge::kNone : ids[b] == expected && values[b] == logits[expected],
               "dtype " + std::to_string(static_cast<int>(dtype)) + ", temperature " + std::to_string(d.temperature) + ", top_k " +
                   std::to_string(d.top_k) + ", top_p " + std::to_string(d.top_p) + ", min_p " + std::to_string(d.min_p) +
                   ", penalty " + std::to_string(d.repetition_penalty) + (d.bias ? ", bias" : "") + (d.allowed ? ", mask" : "") +
                   ": token " + std::to_string(ids[b]) + ", not " + std::to_string(expected));
      }
    }
  }
}

// 10^5 draws of a head of 300 tokens, a position each, by chi-square; numpy's twin makes 10^6.
void draws_follow_the_probabilities() {
  constexpr int64_t vocab = 300, draws = 100000;
  Random random(11);
  const OwnHead head(random, Dtype::int8, vocab, 64, 64, 1, 0.1f, false);
  std::vector<double> count(vocab), expected(vocab);
  double total = 0;
  for (float x : head.logits) total += std::exp(x / 0.8f);
  for (size_t i = 0; i < count.size(); i++) expected[i] = draws * std::exp(head.logits[i] / 0.8f) / total;
  Draw draw;
  draw.temperature = 0.8f;
  draw.seed = 5;
  for (int64_t position = 0; position < draws; position++) {
    int64_t id = 0;
    float value = 0;
    head.draw({draw}, &position, 1, &id, &value);
    count[static_cast<size_t>(id)]++;
  }
  double square = 0, freedom = -1, few = 0, few_expected = 0;
  for (size_t i = 0; i < count.size(); i++) {
    if (expected[i] < 5) {  // together
      few += count[i];
      few_expected += expected[i];
      continue;
    }
    square += (count[i] - expected[i]) * (count[i] - expected[i]) / expected[i];
    freedom++;
  }
  square += few_expected > 0 ? (few - few_expected) * (few - few_expected) / few_expected : 0;
  expect(freedom > 150 && square < freedom + 4 * std::sqrt(2 * freedom),
         "chi-square " + std::to_string(square) + " of " + std::to_string(freedom));
}

void bad_input() {
  const auto refused = [](auto change) {
    Draw draw;
    change(draw);
    return throws([&] { doge::DrawnRows({draw}, 100); });
  };
  const float nan = std::nanf("");
  const Floats bias(100, nan);
  const uint64_t none[2] = {0, ~uint64_t{0} << 36};  // beyond the vocabulary alone
  expect(!refused([](Draw&) {}), "a plain draw");
  expect(refused([=](Draw& d) { d.temperature = nan; }) && refused([](Draw& d) { d.temperature = -1; }), "temperature");
  expect(refused([](Draw& d) { d.top_k = -1; }), "top_k");
  expect(refused([=](Draw& d) { d.top_p = nan; }) && refused([](Draw& d) { d.top_p = 1.01; }), "top_p");
  expect(refused([](Draw& d) { d.min_p = -0.1; }), "min_p");
  expect(refused([](Draw& d) { d.repetition_penalty = 0; }), "repetition_penalty");
  expect(refused([&](Draw& d) { d.bias = bias.data(); }), "bias");
  expect(refused([&](Draw& d) { d.allowed = none; }), "allowed");
  expect(refused([](Draw& d) { d.repetition_penalty = 2, d.seen = {100}; }), "seen");
  Random random(2);
  OwnHead head(random, Dtype::float32, 200, 32, 0, 1, 0.1f, false);
  for (float wrong : {nan, std::numeric_limits<float>::infinity()})
    for (double top_p : {1.0, 0.9})
      for (int64_t top_k : {0, 5}) {
        head.x.assign(32, wrong);
        Draw draw;
        draw.temperature = 1;
        draw.top_p = top_p;
        draw.top_k = top_k;
        const int64_t position = 1;
        int64_t id = -1;
        float value = 0;
        head.draw({draw}, &position, 2, &id, &value);
        expect(id >= 0 && id < 200 && !std::isfinite(value), "logits that are no numbers give a token that exists, and say so");
      }
}

}  // namespace

int main() {
  the_generator_is_philox();
  unsigned seed = 0;
  for (float spread : {0.02f, 0.1f, 0.4f})
    for (int64_t batch : {1, 2, 5}) {
      for (bool tied : {false, true}) run(Dtype::float32, 1000, 64, 0, batch, spread, tied, seed++);
      run(Dtype::float16, 700, 128, 0, batch, spread, false, seed++);
      run(Dtype::int8, 3000, 128, 128, batch, spread, false, seed++);
      run(Dtype::int4, 257, 96, 32, batch, spread, false, seed++);
    }
  run(Dtype::int8, 300, 100, 20, 1, 0.1f, false, seed++);  // no screen
  run(Dtype::float32, 10, 3, 0, 50, 0.4f, true, seed++);
  draws_follow_the_probabilities();
  bad_input();
  return finish(doge::instruction_set());
}
