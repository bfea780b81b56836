// The final norm and the head's logits; the embedding.
#include "head.h"

#include <algorithm>
#include <vector>

#include "half.h"

namespace doge {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[3];
  return memory[which];
}
enum { kShared, kDigits, kTile };

}  // namespace

Head::Head(const Vector& norm, float epsilon, const Matrix& weight, bool only_top_tokens)
    : parts_(std::make_unique<Parts>()) {
  check(weight);
  if (norm.size() != static_cast<size_t>(weight.k)) throw Error("The final norm is not as long as the head is wide.");
  parts_->norm = norm;
  parts_->epsilon = epsilon;
  parts_->original = weight;
  if (only_top_tokens) parts_->screen = LogitScreen(weight);
  if (parts_->screen.empty() || weight.dtype == Dtype::int8) parts_->weight = Packed(weight);
  if (only_top_tokens && parts_->weight.quantized()) parts_->rough = LogitScreen(weight, parts_->weight);
}
Head::~Head() = default;
int64_t Head::hidden_size() const { return parts_->original.k; }
int64_t Head::vocab_size() const { return parts_->original.n; }

void Head::logits(Dtype dtype, int64_t rows, const void* hidden, void* logits, Threads& threads) const {
  const Packed& weight = parts_->weight;
  if (weight.empty()) throw Error("This head was made for its best tokens only.");
  if (rows == 0) return;
  const int64_t k = weight.k(), n = weight.n(), parts = ceil_div(rows, kHeadRows);
  const size_t stride = weight.quantized() ? quantized_bytes(k, weight.block()) : 0;
  float* x = scratch(kShared).get(static_cast<size_t>(rows * k));
  auto* digits = reinterpret_cast<uint8_t*>(scratch(kDigits).get(stride / 4 * static_cast<size_t>(rows) + 1));
  auto body = [&](Team::Worker& worker) {
    worker.phase(ceil_div(rows, 8), [&](int64_t c) {
      for (int64_t r = c * 8; r < std::min(rows, c * 8 + 8); r++) {
        read_floats(dtype, hidden, r * k, k, x + r * k);
        isa().rms_norm(x + r * k, parts_->norm.data(), x + r * k, k, parts_->epsilon);
        if (stride) isa().quantize_row(x + r * k, k, weight.block(), digits + static_cast<size_t>(r) * stride);
      }
    });
    worker.phase(ceil_div(weight.panels(), kHeadPanels) * parts, [&](int64_t c) {
      const int64_t first = c % parts * kHeadRows, count = std::min(kHeadRows, rows - first);
      float* tile = scratch(kTile).get(kHeadRows * kPanel);
      const int64_t begin = c / parts * kHeadPanels;
      for (int64_t p = begin; p < std::min(begin + kHeadPanels, weight.panels()); p++) {
        if (stride)
          weight.multiply(p, count, digits + static_cast<size_t>(first) * stride, static_cast<int64_t>(stride), tile, kPanel);
        else
          weight.multiply(p, count, x + first * k, k, tile, kPanel);
        for (int64_t r = 0; r < count; r++)
          write_floats(dtype, tile + r * kPanel, std::min(kPanel, n - p * kPanel), logits, (first + r) * n + p * kPanel);
      }
    });
  };
  Team::run(threads, static_cast<size_t>(ceil_div(weight.panels(), kHeadPanels) * parts), body);
}

void token_embedding(const Matrix& table, Dtype dtype, int64_t tokens, const int64_t* ids, void* output) {
  check(table);
  for (int64_t t = 0; t < tokens; t++)
    if (ids[t] < 0 || ids[t] >= table.n)
      throw Error("The token id " + std::to_string(ids[t]) + " is outside the vocabulary of " + std::to_string(table.n) + ".");
  thread_local std::vector<float> row;
  row.resize(static_cast<size_t>(table.k));
  for (int64_t t = 0; t < tokens; t++) {
    read_row(table, ids[t], row.data());
    write_floats(dtype, row.data(), table.k, output, t * table.k);
  }
}

}  // namespace doge
