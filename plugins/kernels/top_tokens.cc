// The best tokens of a head.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "half.h"
#include "head.h"

namespace doge {
namespace {

constexpr int64_t kFew = 2;  // so few rows every worker prepares for itself
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
  void raise(float value, int64_t id) {  // the floor follows at once
    push(value, id);
    cut();
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

enum { kFloats, kTile, kScratches };
Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[kScratches];
  return memory[which];
}

}  // namespace

// The last positions, normalised and quantized.
struct TopTokensJob::Rows {
  float* floats;     // [batch, hidden]
  uint8_t* digits;   // [batch] rows of quantize_row
  float* reach;      // [batch]: of the screen
};

// What one worker found, a row of the batch each. Padded, since workers write side by side.
struct alignas(64) TopTokensJob::Found {
  uint64_t turn = 0;  // the call of `run` that it is of
  std::vector<Best> best;
  std::vector<std::vector<Token>> candidates;  // screening: upper bounds of what is left
};

TopTokensJob::TopTokensJob(const Head::Parts& parts, Dtype dtype, int64_t batch, int64_t sequence, const void* hidden,
                           int64_t count, int64_t* ids, float* values, Threads& threads)
    : parts_(parts),
      // The bounds of an int8 head let many tokens through where many are wanted.
      screened_(!parts.screen.empty() && (parts.weight.empty() || count == 1)),
      weight_(screened_ ? parts.screen.weight() : parts.weight), dtype_(dtype), batch_(batch), sequence_(sequence), count_(count),
      stride_(weight_.quantized() ? quantized_bytes(weight_.k(), weight_.block()) : 0), hidden_(hidden), ids_(ids),
      values_(values), found_(std::max<size_t>(1, std::min(threads.count(), Team::kWorkers))) {
  if (count <= 0 || count > weight_.n())
    throw Error("A head of " + std::to_string(weight_.n()) + " tokens has no " + std::to_string(count) + " best.");
  if (sequence <= 0) throw Error("There is no last position in an empty sequence.");
  if (batch_ <= kFew) return;
  floats_.resize(static_cast<size_t>(batch * weight_.k()));
  digits_.get(stride_ * static_cast<size_t>(batch) + 1);
  reach_.resize(static_cast<size_t>(batch));
}
TopTokensJob::~TopTokensJob() = default;

size_t TopTokensJob::width() const { return found_.size(); }

void TopTokensJob::announce(const Team::Worker& worker, Ahead* ahead) const {
  const int64_t chunks = ceil_div(weight_.panels(), kHeadPanels);
  const int64_t end = std::min(worker.end(chunks) * kHeadPanels, weight_.panels());
  for (int64_t p = worker.first(chunks) * kHeadPanels; p < end; p++) weight_.announce(p, ahead);
  ahead->mark();
}

TopTokensJob::Rows TopTokensJob::prepare(Team::Worker& worker) {
  const int64_t k = weight_.k();
  const auto fill = [&](const Rows& rows, int64_t b) {
    float* x = rows.floats + b * k;
    uint8_t* digits = rows.digits + static_cast<size_t>(b) * stride_;
    read_floats(dtype_, hidden_, (b * sequence_ + sequence_ - 1) * k, k, x);
    isa().rms_norm(x, parts_.norm.data(), x, k, parts_.epsilon);
    if (stride_) isa().quantize_row(x, k, weight_.block(), digits);
    rows.reach[b] = screened_ ? parts_.screen.reach(x) : 0.0f;
  };
  if (batch_ > kFew) {
    const Rows rows{floats_.data(), digits_.get(stride_ * static_cast<size_t>(batch_) + 1), reach_.data()};
    worker.phase(batch_, [&](int64_t b) { fill(rows, b); });
    return rows;
  }
  thread_local Scratch<uint8_t> own_digits;
  float* own = scratch(kFloats).get(static_cast<size_t>(batch_ * k + kFew));
  const Rows rows{own + kFew, own_digits.get(stride_ * kFew + 1), own};
  for (int64_t b = 0; b < batch_; b++) fill(rows, b);
  return rows;
}

void TopTokensJob::run(Team::Worker& worker) {
  const Rows rows = prepare(worker);
  Found* own = nullptr;
  const uint64_t turn = worker.next_phase();
  worker.phase(ceil_div(weight_.panels(), kHeadPanels), [&](int64_t c) {
    if (own == nullptr) {
      own = &found_[worker.index()];
      own->turn = turn;
      own->best.resize(static_cast<size_t>(batch_));
      own->candidates.resize(static_cast<size_t>(batch_));
      for (Best& best : own->best) best.reset(static_cast<size_t>(count_));
      for (std::vector<Token>& candidates : own->candidates) candidates.clear();
    }
    look(rows, c, own);
  });
  if (screened_ && count_ == 1) {
    const auto workers = static_cast<int64_t>(found_.size());
    worker.phase(batch_ * workers, [&](int64_t c) { compute(rows, c / workers, turn, &found_[static_cast<size_t>(c % workers)]); });
  }
  worker.phase(batch_, [&](int64_t b) { choose(rows, b, turn); });
}

// The best token of row b among the candidates that one worker found: the bounds of most are too low by now.
void TopTokensJob::compute(const Rows& rows, int64_t b, uint64_t turn, Found* found) const {
  if (found->turn != turn) return;
  const auto row = static_cast<size_t>(b);
  float floor = kNone;
  for (const Found& each : found_)
    if (each.turn == turn) floor = std::max(floor, each.best[row].floor());
  std::vector<Token>& candidates = found->candidates[row];
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), [&](const Token& token) { return token.value < floor; }),
                   candidates.end());
  parts_.screen.exact(rows.floats + b * weight_.k(), rows.digits + row * stride_, candidates.size(),
                      [&](size_t i) { return candidates[i].id; }, [&](size_t i, float value) { candidates[i].value = number(value); });
}

// The panels of one chunk.
void TopTokensJob::look(const Rows& rows, int64_t chunk, Found* found) const {
  const int64_t k = weight_.k(), n = weight_.n();
  float* tile = scratch(kTile).get((kHeadRows + 1) * kPanel);
  float* upper = tile + kHeadRows * kPanel;
  for (int64_t first = 0; first < batch_; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, batch_ - first);
    for (int64_t p = chunk * kHeadPanels; p < std::min((chunk + 1) * kHeadPanels, weight_.panels()); p++) {
      const int64_t wide = std::min(kPanel, n - p * kPanel);
      if (stride_)
        weight_.multiply(p, count, rows.digits + static_cast<size_t>(first) * stride_, static_cast<int64_t>(stride_), tile, kPanel);
      else
        weight_.multiply(p, count, rows.floats + first * k, k, tile, kPanel);
      for (int64_t r = 0; r < count; r++) {
        const auto row = static_cast<size_t>(first + r);
        float* value = tile + r * kPanel;
        Best& best = found->best[row];
        const uint64_t real = wide == kPanel ? ~uint64_t{0} : (uint64_t{1} << wide) - 1;
        if (screened_) parts_.screen.upper(p, rows.reach[row], value, upper);
        if (screened_ && count_ > 1) parts_.screen.lower(p, rows.reach[row], value);
        for (uint64_t bits = isa().not_below(value, best.floor()) & real; bits; bits &= bits - 1) {
          const int64_t i = __builtin_ctzll(bits);
          if (!(number(value[i]) >= best.floor())) continue;
          if (screened_ && count_ == 1)  // what looks better than the best is computed: few do, and they raise the floor
            parts_.screen.exact(
                rows.floats + (first + r) * k, rows.digits + row * stride_, 1, [&](size_t) { return p * kPanel + i; },
                [&](size_t, float exact) { best.raise(number(exact), p * kPanel + i); });
          else
            best.push(number(value[i]), p * kPanel + i);
        }
        if (screened_)
          for (uint64_t bits = isa().not_below(upper, best.floor()) & real; bits; bits &= bits - 1) {
            const int64_t i = __builtin_ctzll(bits);
            found->candidates[row].push_back({upper[i], p * kPanel + i});
          }
      }
    }
  }
}

// The best of what all workers found for row b.
void TopTokensJob::choose(const Rows& rows, int64_t b, uint64_t turn) {
  const auto row = static_cast<size_t>(b);
  Best best;
  best.reset(static_cast<size_t>(count_));
  for (const Found& found : found_)
    if (found.turn == turn) best.push_all(found.best[row]);
  if (screened_) {
    std::vector<Token> survivors;
    const float floor = count_ == 1 ? kNone : best.sorted().back().value;  // no token below it can be among the best
    for (const Found& found : found_)
      if (found.turn == turn)
        for (const Token& token : found.candidates[row])
          if (!(token.value < floor)) survivors.push_back(token);
    if (count_ > 1)
      parts_.screen.exact(rows.floats + b * weight_.k(), rows.digits + row * stride_, survivors.size(),
                          [&](size_t i) { return survivors[i].id; }, [&](size_t i, float value) { survivors[i].value = value; });
    best.reset(static_cast<size_t>(count_));
    for (const Token& token : survivors) best.push(number(token.value), token.id);
  }
  const std::vector<Token>& tokens = best.sorted();
  for (int64_t i = 0; i < count_; i++) {
    ids_[b * count_ + i] = tokens[static_cast<size_t>(i)].id;
    values_[b * count_ + i] = tokens[static_cast<size_t>(i)].value;
  }
}

void Head::top_tokens(Dtype dtype, int64_t batch, int64_t sequence, const void* hidden, int64_t count, int64_t* ids,
                      float* values, Threads& threads) const {
  TopTokensJob job(*parts_, dtype, batch, sequence, hidden, count, ids, values, threads);
  auto body = [&](Team::Worker& worker) { job.run(worker); };
  if (batch > 0) Team::run(threads, job.width(), body);
}

}  // namespace doge
