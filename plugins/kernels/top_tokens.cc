// The best tokens of a head.
#include <algorithm>
#include <vector>

#include "best_tokens.h"
#include "half.h"
#include "head.h"

namespace doge {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Scratch<float>& tile_memory() {
  thread_local Scratch<float> memory;
  return memory;
}

// Many rows are slow by their arithmetic, and few by memory, where a copy of fewer bytes is better. The bounds of an int8
// head's copy let many tokens through where many are wanted.
const LogitScreen& screen_for(const Head::Parts& parts, int64_t batch, int64_t count) {
  static const LogitScreen none;
  if (!parts.rough.empty() && ManyRows::pays(batch, count, parts.weight.panels())) return parts.rough;
  return parts.weight.empty() || count == 1 ? parts.screen : none;
}

}  // namespace

// What one worker found, a row of the batch each. Padded, since workers write side by side.
struct alignas(64) TopTokensJob::Found {
  uint64_t turn = 0;  // the call of `run` that it is of
  std::vector<Best> best;
  std::vector<std::vector<Token>> candidates;  // screening: upper bounds of what is left
};

TopTokensJob::TopTokensJob(const Head::Parts& parts, Dtype dtype, int64_t batch, int64_t sequence, const void* hidden,
                           int64_t count, int64_t* ids, float* values, Threads& threads, const int64_t* wanted)
    : parts_(parts), screen_(screen_for(parts, batch, count)), screened_(!screen_.empty()),
      weight_(screened_ ? screen_.weight() : parts.weight), batch_(batch), count_(count), ids_(ids), values_(values),
      last_(parts, weight_, screened_ ? &screen_ : nullptr, dtype, batch, sequence, hidden, wanted),
      found_(std::max<size_t>(1, std::min(threads.count(), Team::kWorkers))) {
  if (count <= 0 || count > weight_.n())
    throw Error("A head of " + std::to_string(weight_.n()) + " tokens has no " + std::to_string(count) + " best.");
  if (ManyRows::pays(batch, count, weight_.panels()))
    many_ = std::make_unique<ManyRows>(weight_, screened_ ? &screen_ : nullptr, batch, count);
}
TopTokensJob::~TopTokensJob() = default;

size_t TopTokensJob::width() const { return found_.size(); }

void TopTokensJob::announce(const Team::Worker& worker, PrefetchQueue* queue) const {
  announce_head(weight_, worker, queue);
}

void TopTokensJob::run(Team::Worker& worker) {
  const LastRows::Normed rows = last_.prepare(worker);
  if (many_) {
    worker.phase(ceil_div(weight_.panels(), kHeadPanels), [&](int64_t c) {
      for (int64_t p = c * kHeadPanels; p < std::min((c + 1) * kHeadPanels, weight_.panels()); p++)
        many_->look(p, rows.floats, rows.digits, rows.stride, rows.reach);
    });
    worker.phase(batch_, [&](int64_t b) { choose(rows, b, 0); });
    return;
  }
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
void TopTokensJob::compute(const LastRows::Normed& rows, int64_t b, uint64_t turn, Found* found) const {
  if (found->turn != turn) return;
  const auto row = static_cast<size_t>(b);
  float floor = kNone;
  for (const Found& each : found_)
    if (each.turn == turn) floor = std::max(floor, each.best[row].floor());
  std::vector<Token>& candidates = found->candidates[row];
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), [&](const Token& token) { return token.value < floor; }),
                   candidates.end());
  screen_.exact(rows.floats + b * weight_.k(), rows.digits + row * rows.stride, candidates.size(),
                      [&](size_t i) { return candidates[i].id; }, [&](size_t i, float value) { candidates[i].value = number(value); });
}

// The panels of one chunk.
void TopTokensJob::look(const LastRows::Normed& rows, int64_t chunk, Found* found) const {
  const int64_t k = weight_.k(), n = weight_.n();
  float* tile = tile_memory().get((kHeadRows + 1) * kPanel);
  float* upper = tile + kHeadRows * kPanel;
  for (int64_t first = 0; first < batch_; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, batch_ - first);
    for (int64_t p = chunk * kHeadPanels; p < std::min((chunk + 1) * kHeadPanels, weight_.panels()); p++) {
      const int64_t wide = std::min(kPanel, n - p * kPanel);
      if (screened_ && rows.stride)
        screen_.multiply(p, count, rows.digits + static_cast<size_t>(first) * rows.stride, static_cast<int64_t>(rows.stride), tile, kPanel);
      else if (rows.stride)
        weight_.multiply(p, count, rows.digits + static_cast<size_t>(first) * rows.stride, static_cast<int64_t>(rows.stride), tile, kPanel);
      else
        weight_.multiply(p, count, rows.floats + first * k, k, tile, kPanel);
      for (int64_t r = 0; r < count; r++) {
        const auto row = static_cast<size_t>(first + r);
        float* value = tile + r * kPanel;
        Best& best = found->best[row];
        const uint64_t real = wide == kPanel ? ~uint64_t{0} : (uint64_t{1} << wide) - 1;
        if (screened_) screen_.upper(p, rows.reach[row], value, upper);
        if (screened_ && count_ > 1) screen_.lower(p, rows.reach[row], value);
        for (uint64_t bits = isa().not_below(value, best.floor()) & real; bits; bits &= bits - 1) {
          const int64_t i = __builtin_ctzll(bits);
          if (!(number(value[i]) >= best.floor())) continue;
          if (screened_ && count_ == 1)  // what looks better than the best is computed: few do, and they raise the floor
            screen_.exact(
                rows.floats + (first + r) * k, rows.digits + row * rows.stride, 1, [&](size_t) { return p * kPanel + i; },
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
void TopTokensJob::choose(const LastRows::Normed& rows, int64_t b, uint64_t turn) {
  const auto row = static_cast<size_t>(b);
  Best best;
  best.reset(static_cast<size_t>(count_));
  if (many_) {
    thread_local std::vector<std::pair<float, int64_t>> tokens;
    many_->choose(b, rows.floats + b * weight_.k(), rows.digits + row * rows.stride, &tokens);
    for (const auto& token : tokens) best.push(number(token.first), token.second);
  } else {
    for (const Found& found : found_)
      if (found.turn == turn) best.push_all(found.best[row]);
  }
  if (screened_ && !many_) {
    std::vector<Token> survivors;
    const float floor = count_ == 1 ? kNone : best.sorted().back().value;  // no token below it can be among the best
    for (const Found& found : found_)
      if (found.turn == turn)
        for (const Token& token : found.candidates[row])
          if (!(token.value < floor)) survivors.push_back(token);
    if (count_ > 1)
      screen_.exact(rows.floats + b * weight_.k(), rows.digits + row * rows.stride, survivors.size(),
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
                      float* values, Threads& threads, const int64_t* wanted) const {
  TopTokensJob job(*parts_, dtype, batch, sequence, hidden, count, ids, values, threads, wanted);
  auto body = [&](Team::Worker& worker) { job.run(worker); };
  if (batch > 0) Team::run(threads, job.width(), body);
}

}  // namespace doge
