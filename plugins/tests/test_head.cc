// The head: logits against float64, and the best tokens against a sort of the logits, screened or not, with ties.
#include "oracle.h"

#include "../kernels/isa.h"
#include "../kernels/logit_screen.h"

using namespace oracle;
using doge::Dtype;

namespace {

void run(Dtype dtype, int64_t vocab, int64_t hidden, int64_t block, int64_t batch, int64_t sequence, bool tied) {
  Random random(static_cast<unsigned>(vocab + hidden + batch));
  OwnMatrix w;
  w.draw(random, dtype, vocab, hidden, block, 0.05f);
  if (tied && dtype == Dtype::float32)  // equal rows: the lower id must win
    for (int64_t token = vocab / 2; token < vocab; token++)
      std::copy_n(w.floats.begin() + (token - vocab / 2) * hidden, hidden, w.floats.begin() + token * hidden);
  const Floats norm = random.normal(hidden), x = random.normal(batch * sequence * hidden);
  const doge::Head full(norm, 1e-6f, w.matrix), quick(norm, 1e-6f, w.matrix, true);
  for (size_t threads : {1, 4}) {
    Pool pool(threads);
    Floats logits(static_cast<size_t>(batch * sequence * vocab));
    full.logits(Dtype::float32, batch * sequence, x.data(), logits.data(), pool);
    if (!tied && threads == 1) {
      Doubles h(x.begin(), x.end());
      for (int64_t r = 0; r < batch * sequence; r++) rms_norm(&h[static_cast<size_t>(r * hidden)], hidden, norm, 1e-6);
      const double far = distance(logits, linear(h, batch * sequence, w));
      expect(far <= (block ? 1e-3 : 1e-5), "logits: " + std::to_string(far));
    }
    for (int64_t count : {int64_t{1}, std::min<int64_t>(7, vocab), std::min<int64_t>(64, vocab), vocab}) {
      std::vector<int64_t> ids(static_cast<size_t>(batch * count)), quick_ids(ids.size());
      Floats values(ids.size()), quick_values(ids.size());
      full.top_tokens(Dtype::float32, batch, sequence, x.data(), count, ids.data(), values.data(), pool);
      quick.top_tokens(Dtype::float32, batch, sequence, x.data(), count, quick_ids.data(), quick_values.data(), pool);
      for (int64_t b = 0; b < batch; b++) {
        const float* row = &logits[static_cast<size_t>((b * sequence + sequence - 1) * vocab)];
        std::vector<int64_t> order(static_cast<size_t>(vocab));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [row](int64_t i, int64_t j) { return row[i] > row[j]; });
        bool good = true;
        for (int64_t i = 0; i < count; i++) {
          const auto at = static_cast<size_t>(b * count + i);
          good = good && ids[at] == order[static_cast<size_t>(i)] && values[at] == row[order[static_cast<size_t>(i)]];
          good = good && quick_ids[at] == ids[at] && quick_values[at] == values[at];
        }
        expect(good, "the " + std::to_string(count) + " best of " + std::to_string(vocab) + ", dtype " + std::to_string(static_cast<int>(dtype)));
      }
    }
  }
}

// Every logit lies within the bounds of the rough products, which are not much too wide.
void rough_bounds(Dtype dtype, int64_t k, int64_t block) {
  Random random(static_cast<unsigned>(k + block));
  OwnMatrix w;
  w.draw(random, dtype, 640, k, block, 0.05f);
  const doge::Packed packed(w.matrix);
  const doge::LogitScreen screen(w.matrix, packed);
  if (screen.empty()) return;  // the processor has none
  const auto stride = static_cast<int64_t>(doge::quantized_bytes(k, block));
  for (int64_t rows : {1, 2, 3, 5, 6, 7, 17}) {
    Floats x = random.normal(rows * k);
    x[0] *= 40;  // most digits of this row are small, so that low bytes are much of them
    std::vector<uint8_t> digits(static_cast<size_t>(rows * stride) + 64);
    uint8_t* at = digits.data() + 64 - reinterpret_cast<uintptr_t>(digits.data()) % 64;
    for (int64_t r = 0; r < rows; r++) doge::isa().quantize_row(x.data() + r * k, k, block, at + r * stride);
    Floats rough(static_cast<size_t>(rows * doge::kPanel)), exact(rough.size()), upper(static_cast<size_t>(doge::kPanel));
    double farthest = 0;
    for (int64_t p = 0; p < packed.panels(); p++) {
      screen.multiply(p, rows, at, stride, rough.data(), doge::kPanel);
      packed.multiply(p, rows, at, stride, exact.data(), doge::kPanel);
      for (int64_t r = 0; r < rows; r++) {
        float *value = rough.data() + r * doge::kPanel, reach = screen.reach(x.data() + r * k, at + r * stride);
        screen.upper(p, reach, value, upper.data());
        Floats lower(value, value + doge::kPanel);
        screen.lower(p, reach, lower.data());
        for (int64_t o = 0; o < doge::kPanel; o++) {
          const auto i = static_cast<size_t>(o);
          const float real = exact[static_cast<size_t>(r * doge::kPanel + o)];
          expect(lower[i] <= real && real <= upper[i], "a logit is outside its bounds");
          const double room = static_cast<double>(upper[i]) - static_cast<double>(lower[i]);
          const double used = 2 * std::fabs(static_cast<double>(real) - static_cast<double>(value[o])) / room;
          farthest = std::max(farthest, used);
        }
      }
    }
    const bool tiles = std::string(doge::instruction_set()) == "amx";  // which multiply both bytes
    expect(tiles || farthest > 0.05, "the bounds are " + std::to_string(1 / farthest) + " times too wide");
  }
}

}  // namespace

int main() {
  rough_bounds(Dtype::int8, 256, 128);
  rough_bounds(Dtype::int8, 60, 12);
  rough_bounds(Dtype::int8, 768, 128);
  rough_bounds(Dtype::int4, 256, 32);
  rough_bounds(Dtype::int4, 80, 40);
  for (int64_t batch : {1, 3, 50}) {
    run(Dtype::float32, 1000, 64, 0, batch, 2, false);
    run(Dtype::float32, 1000, 64, 0, batch, 1, true);
  }
  run(Dtype::float32, 5000, 256, 0, 1, 1, false);
  run(Dtype::float16, 1000, 128, 0, 2, 1, false);
  run(Dtype::int8, 1000, 128, 128, 2, 3, false);
  run(Dtype::int8, 5000, 256, 128, 1, 1, false);  // the best one is screened
  run(Dtype::int8, 257, 96, 24, 50, 1, false);
  run(Dtype::int8, 300, 100, 20, 1, 1, false);  // not screened: no block of int4
  run(Dtype::int4, 257, 96, 32, 2, 1, false);
  for (int64_t batch : {1, 3, 4, 7, 50}) {  // of several rows the high bytes decide what is computed
    run(Dtype::int8, 3000, 256, 128, batch, 1, false);
    run(Dtype::int8, 1000, 60, 12, batch, 2, false);
    run(Dtype::int4, 3000, 256, 32, batch, 1, false);
    run(Dtype::int4, 1001, 80, 40, batch, 1, false);
  }
  run(Dtype::float32, 10, 3, 0, 1, 1, false);  // no block fits: not screened
  Random random(3);
  OwnMatrix w;
  w.draw(random, Dtype::float32, 100, 32);
  const Floats norm(32, 1.0f);
  Pool pool(2);
  for (bool only : {false, true}) {  // nothing sensible comes of NaN, but nothing breaks either
    const doge::Head head(norm, 1e-6f, w.matrix, only);
    const Floats x(32, std::nanf(""));
    int64_t ids[5];
    float values[5];
    head.top_tokens(Dtype::float32, 1, 1, x.data(), 5, ids, values, pool);
    for (int64_t id : ids) expect(id >= 0 && id < 100, "NaN gives a token that exists");
    expect(throws([&] { head.top_tokens(Dtype::float32, 1, 1, x.data(), 101, ids, values, pool); }), "too many are refused");
  }
  OwnMatrix table;
  table.draw(random, Dtype::int4, 10, 32, 8);
  Floats row(64);
  const int64_t good[2] = {9, 0}, bad[1] = {10};
  doge::token_embedding(table.matrix, Dtype::float32, 2, good, row.data());
  for (size_t i = 0; i < 32; i++) expect(row[i] == static_cast<float>(table.values[9 * 32 + i]), "embedding");
  expect(throws([&] { doge::token_embedding(table.matrix, Dtype::float32, 1, bad, row.data()); }), "an id outside is refused");
  return finish(doge::instruction_set());
}
