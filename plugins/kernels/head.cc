// The final norm and the head: all logits, or the best tokens only.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "half.h"
#include "packed.h"
#include "screen.h"
#include "team.h"

namespace doge {
namespace {

constexpr int64_t kTileRows = 48;
constexpr int64_t kPanelsAtOnce = 4;  // panels of one chunk
const float kNone = -std::numeric_limits<float>::infinity();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Token {
  float value;
  int64_t id;
};
// A NaN would be in no order with the others.
float number(float value) { return value >= kNone ? value : kNone; }
bool better(const Token& a, const Token& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The `count` best of what is pushed, and what may still be among them: cut when it grows too long.
class Best {
 public:
  void reset(size_t count) {
    count_ = count;
    tokens_.clear();
    floor_ = kNone;
  }
  float floor() const { return floor_; }  // what is below it need not be pushed
  void push(float value, int64_t id) {
    tokens_.push_back({value, id});
    if (tokens_.size() >= 4 * count_ + 64) cut();
  }
  void push_all(const Best& other) {
    for (const Token& token : other.tokens_) push(token.value, token.id);
  }
  // In order; fewer than `count` where fewer were pushed.
  const std::vector<Token>& sorted() {
    cut();
    std::sort(tokens_.begin(), tokens_.end(), better);
    return tokens_;
  }

 private:
  void cut() {
    if (tokens_.size() < count_) return;
    const auto nth = tokens_.begin() + static_cast<std::ptrdiff_t>(count_) - 1;
    std::nth_element(tokens_.begin(), nth, tokens_.end(), better);
    floor_ = nth->value;
    tokens_.resize(count_);
  }
  size_t count_ = 1;
  float floor_ = kNone;
  std::vector<Token> tokens_;
};

// What one worker found, a row of the batch each. Padded, since workers write side by side.
struct alignas(64) Found {
  std::vector<Best> best;
  std::vector<std::vector<Token>> candidates;  // screening: upper bounds of what is left
};

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[3];
  return memory[which];
}
enum { kShared, kDigits, kTile };

}  // namespace

struct Head::Parts {
  Vector norm;
  float epsilon;
  Matrix original;
  Packed weight;  // empty where only the screen is used
  Screen screen;
};

Head::Head(const Vector& norm, float epsilon, const Matrix& weight, bool only_top_tokens)
    : parts_(std::make_unique<Parts>()) {
  check(weight);
  if (norm.size() != static_cast<size_t>(weight.k)) throw Error("The final norm is not as long as the head is wide.");
  parts_->norm = norm;
  parts_->epsilon = epsilon;
  parts_->original = weight;
  if (only_top_tokens) parts_->screen = Screen(weight);
  if (parts_->screen.empty()) parts_->weight = Packed(weight);
}
Head::~Head() = default;
int64_t Head::hidden_size() const { return parts_->original.k; }
int64_t Head::vocab_size() const { return parts_->original.n; }

void Head::logits(Dtype dtype, int64_t rows, const void* hidden, void* logits, Threads& threads) const {
  const Packed& weight = parts_->weight;
  if (weight.empty()) throw Error("This head was made for its best tokens only.");
  if (rows == 0) return;
  const int64_t k = weight.k(), n = weight.n(), parts = ceil_div(rows, kTileRows);
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
    worker.phase(ceil_div(weight.panels(), kPanelsAtOnce) * parts, [&](int64_t c) {
      const int64_t first = c % parts * kTileRows, count = std::min(kTileRows, rows - first);
      float* tile = scratch(kTile).get(kTileRows * kPanel);
      const int64_t begin = c / parts * kPanelsAtOnce;
      for (int64_t p = begin; p < std::min(begin + kPanelsAtOnce, weight.panels()); p++) {
        if (stride)
          weight.multiply(p, count, digits + static_cast<size_t>(first) * stride, static_cast<int64_t>(stride), tile, kPanel);
        else
          weight.multiply(p, count, x + first * k, k, tile, kPanel);
        for (int64_t r = 0; r < count; r++)
          write_floats(dtype, tile + r * kPanel, std::min(kPanel, n - p * kPanel), logits, (first + r) * n + p * kPanel);
      }
    });
  };
  Team::run(threads, static_cast<size_t>(ceil_div(weight.panels(), kPanelsAtOnce) * parts), body);
}

void Head::top_tokens(Dtype dtype, int64_t batch, int64_t sequence, const void* hidden, int64_t count, int64_t* ids,
                      float* values, Threads& threads) const {
  const Screen& screen = parts_->screen;
  const bool screened = !screen.empty();
  const Packed& weight = screened ? screen.weight() : parts_->weight;
  const int64_t k = weight.k(), n = weight.n();
  if (count <= 0 || count > n) throw Error("A head of " + std::to_string(n) + " tokens has no " + std::to_string(count) + " best.");
  if (sequence <= 0) throw Error("There is no last position in an empty sequence.");
  if (batch == 0) return;
  const size_t stride = weight.quantized() ? quantized_bytes(k, weight.block()) : 0;
  float* x = scratch(kShared).get(static_cast<size_t>(batch * k));
  auto* digits = reinterpret_cast<uint8_t*>(scratch(kDigits).get(stride / 4 * static_cast<size_t>(batch) + 1));
  std::vector<float> reach(static_cast<size_t>(batch), 0.0f);
  for (int64_t b = 0; b < batch; b++) {
    read_floats(dtype, hidden, (b * sequence + sequence - 1) * k, k, x + b * k);
    isa().rms_norm(x + b * k, parts_->norm.data(), x + b * k, k, parts_->epsilon);
    if (stride) isa().quantize_row(x + b * k, k, weight.block(), digits + static_cast<size_t>(b) * stride);
    if (screened) reach[static_cast<size_t>(b)] = screen.reach(x + b * k, digits + static_cast<size_t>(b) * stride);
  }
  std::vector<Found> found(std::max<size_t>(1, threads.count()));
  std::atomic<size_t> next{0};
  std::vector<std::vector<Token>> left(static_cast<size_t>(batch));
  auto body = [&](Team::Worker& worker) {
    Found* own = nullptr;
    worker.phase(ceil_div(weight.panels(), kPanelsAtOnce), [&](int64_t c) {
      if (own == nullptr) {
        own = &found[next.fetch_add(1)];
        own->best.resize(static_cast<size_t>(batch));
        own->candidates.resize(screened ? static_cast<size_t>(batch) : 0);
        for (Best& best : own->best) best.reset(static_cast<size_t>(count));
      }
      float* tile = scratch(kTile).get((kTileRows + 1) * kPanel);
      float* upper = tile + kTileRows * kPanel;
      for (int64_t first = 0; first < batch; first += kTileRows) {
        const int64_t rows = std::min(kTileRows, batch - first);
        for (int64_t p = c * kPanelsAtOnce; p < std::min((c + 1) * kPanelsAtOnce, weight.panels()); p++) {
          const int64_t wide = std::min(kPanel, n - p * kPanel);
          if (stride)
            weight.multiply(p, rows, digits + static_cast<size_t>(first) * stride, static_cast<int64_t>(stride), tile, kPanel);
          else
            weight.multiply(p, rows, x + first * k, k, tile, kPanel);
          for (int64_t r = 0; r < rows; r++) {
            const auto row = static_cast<size_t>(first + r);
            float* value = tile + r * kPanel;
            Best& best = own->best[row];
            if (screened) screen.bound(p, reach[row], value, upper);  // value: lower bounds
            const uint64_t real = wide == kPanel ? ~uint64_t{0} : (uint64_t{1} << wide) - 1;
            for (uint64_t bits = isa().not_below(value, best.floor()) & real; bits; bits &= bits - 1) {
              const int64_t i = __builtin_ctzll(bits);
              if (number(value[i]) >= best.floor()) best.push(number(value[i]), p * kPanel + i);
            }
            if (screened)
              for (uint64_t bits = isa().not_below(upper, best.floor()) & real; bits; bits &= bits - 1) {
                const int64_t i = __builtin_ctzll(bits);
                own->candidates[row].push_back({upper[i], p * kPanel + i});
              }
          }
        }
      }
    });
    worker.phase(batch, [&](int64_t b) {
      const auto row = static_cast<size_t>(b);
      Best best;
      best.reset(static_cast<size_t>(count));
      const size_t workers = next.load();
      for (size_t w = 0; w < workers; w++) best.push_all(found[w].best[row]);
      if (screened) {
        const float floor = best.sorted().back().value;  // no token below it can be among the best
        std::vector<Token>& survivors = left[row];
        for (size_t w = 0; w < workers; w++)
          for (const Token& token : found[w].candidates[row])
            if (!(token.value < floor)) survivors.push_back(token);
        screen.exact(x + b * k, survivors.size(), [&](size_t i) { return survivors[i].id; },
                     [&](size_t i, float value) { survivors[i].value = value; });
        best.reset(static_cast<size_t>(count));
        for (const Token& token : survivors) best.push(number(token.value), token.id);
      }
      const std::vector<Token>& tokens = best.sorted();
      for (int64_t i = 0; i < count; i++) {
        ids[b * count + i] = tokens[static_cast<size_t>(i)].id;
        values[b * count + i] = tokens[static_cast<size_t>(i)].value;
      }
    });
  };
  Team::run(threads, found.size(), body);
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
