// Which tokens top_p and min_p keep, where all are drawn from: the one with the best value counts if it is in the nucleus,
// else the next one that is. Bounds of the scores are enough where they decide; else all are computed.
#include <cmath>

#include "sampling.h"

namespace doge {
namespace {

constexpr double kSure = 1e-4;  // how far sums of float32 may be from those of whole numbers, and more

float below(double value) { return std::nextafter(static_cast<float>(value), kNone); }

}  // namespace

// Adds up the panels [first, end) of row b.
void DrawJob::measure(int64_t b, int64_t first, int64_t end, const Candidate& token, Sums* sums) const {
  const auto at = static_cast<size_t>(b);
  if (!std::isfinite(best_[at])) return;
  const float under = std::nextafter(token.score, kNone);
  // The probabilities of a panel's `s`, all and those before the token.
  const auto add = [&](int64_t p, const float* s, double* all, double* earlier) {
    float part = 0;
    const bool equals = p * kPanel < token.id;  // there may be some of a lower id
    *all += isa().probabilities(s, best_[at], equals ? under : token.score, &part);
    if (equals && p == token.id / kPanel)  // itself and those of a higher id do not come before it
      for (int64_t i = token.id % kPanel; i < kPanel; i++)
        if (s[i] == token.score) part -= std::exp(token.score - best_[at]);
    *earlier += part;
  };
  float low[kPanel];
  for (int64_t p = first; p < end; p++) {
    const float *s = scores(b) + p * kPanel, *h = highs(b) + p * kPanel;
    add(p, bounded(b) ? h : s, &sums->high, &sums->high_before);
    if (!bounded(b)) continue;
    for (int64_t i = 0; i < kPanel; i++) low[i] = h[i] > kNone ? 2 * s[i] - h[i] : kNone;
    add(p, low, &sums->low, &sums->low_before);
    sums->highest = std::max(sums->highest, isa().largest(kPanel, h));
  }
}

// 1: the token is kept, -1: it is not, 0: all scores have to be known.
int DrawJob::verdict(int64_t b, const Candidate& token, const Sums& sums, float computed) const {
  const Draw& draw = rows_[b].draw;
  const bool rough = bounded(b);
  if (draw.min_p > 0) {
    if (rough && computed < sums.highest) return 0;  // another one may be the best
    const float best = rough ? computed : best_[static_cast<size_t>(b)];
    const double power = std::exp(static_cast<double>(token.score) - static_cast<double>(best));
    if (std::fabs(power - draw.min_p) < kSure * draw.min_p) return 0;
    if (power < draw.min_p) return -1;
  }
  if (draw.top_p == 1) return 1;
  const double low = rough ? sums.low : sums.high, low_before = rough ? sums.low_before : sums.high_before;
  if (sums.high_before < draw.top_p * low - kSure * sums.high) return 1;
  if (low_before > draw.top_p * sums.high + kSure * sums.high) return -1;
  return 0;
}

// The scores of all tokens of row b, where they were bounds.
void DrawJob::compute_all(const LastRows::Normed& normed, int64_t b) {
  if (!screened_) return;
  const auto at = static_cast<size_t>(b);
  const DrawnRows::Row& row = rows_[b];
  std::vector<int64_t> ids;
  for (int64_t p = 0; p < panels_; p++)
    for (uint64_t bits = row.real(p); bits; bits &= bits - 1) ids.push_back(p * kPanel + __builtin_ctzll(bits));
  parts_.screen.exact(
      normed.floats + b * weight_.k(), normed.digits + at * normed.stride, ids.size(), [&](size_t i) { return ids[i]; },
      [&](size_t i, float logit) { scores(b)[ids[i]] = number(row.adjusted(ids[i], logit) / row.temperature); });
  std::copy_n(scores(b), panels_ * kPanel, highs(b));
  best_[at] = isa().largest(panels_ * kPanel, scores(b));
}

// Whether a token is kept, by whole numbers, once all scores are there.
bool DrawJob::kept(int64_t b, const Candidate& token, float best) const {
  const Draw& draw = rows_[b].draw;
  int64_t earlier = 0, total = 0;
  bool first = true;
  for (int64_t id = 0; id < panels_ * kPanel; id++) {
    const float score = scores(b)[id];
    const int64_t own = weight_of_score(score, best);
    total += own;
    if (!before(score, id, token.score, token.id)) continue;
    earlier += own;
    first = false;
  }
  if (first) return true;
  return static_cast<double>(weight_of_score(token.score, best)) >= draw.min_p * kWeight &&
         (draw.top_p == 1 || static_cast<double>(earlier) < draw.top_p * static_cast<double>(total));
}

// The token with the largest score + noise of those before `limit` in descending order.
DrawJob::Candidate DrawJob::best_before(int64_t b, const Candidate& limit) const {
  const DrawnRows::Row& row = rows_[b];
  Noise noise(row.draw, positions_[b]);
  Candidate best{-std::numeric_limits<double>::infinity(), kNone, -1};
  float s[kPanel], high[kPanel], upper[kPanel];
  for (int64_t p = 0; p < panels_; p++) {
    const float* own = scores(b) + p * kPanel;
    uint64_t bits = isa().not_below(own, limit.score) & row.real(p);
    if (!bits) continue;
    bits &= isa().draw_bounds(own, own, 1.0f, noise.words(p), best.id < 0 ? kNone : below(best.value), s, high, upper);
    for (; bits; bits &= bits - 1) {
      const int64_t i = __builtin_ctzll(bits), id = p * kPanel + i;
      if (own[i] == kNone || !before(own[i], id, limit.score, limit.id)) continue;
      const double value = own[i] + noise.of(id);
      if (best.id < 0 || value > best.value) best = {value, own[i], id};
    }
  }
  return best;
}

// Where the token with the best value is not in the nucleus, the best of those that come before it in order may be.
void DrawJob::finish(const LastRows::Normed& normed, int64_t b, uint64_t turn) {
  const auto at = static_cast<size_t>(b);
  Sums sums;
  float computed = kNone;
  for (const Found& found : found_) {
    if (found.turn != turn) continue;
    const Sums& part = found.sums[at];
    sums.low += part.low;
    sums.high += part.high;
    sums.low_before += part.low_before;
    sums.high_before += part.high_before;
    sums.highest = std::max(sums.highest, part.highest);
    computed = std::max(computed, found.computed[at]);
  }
  const std::vector<Candidate>& tries = tries_[at];
  Candidate token = tries.front();
  bool known = !screened_;
  const auto know_all = [&] {
    if (known) return;
    compute_all(normed, b);
    computed = best_[at];
    known = true;
  };
  for (size_t next = 1; std::isfinite(best_[at]);) {
    int decided = verdict(b, token, sums, computed);
    if (decided == 0 && !known) {
      know_all();
      measure(b, 0, panels_, token, &(sums = {}));
      decided = verdict(b, token, sums, computed);
    }
    if (decided > 0 || (decided == 0 && (!std::isfinite(best_[at]) || kept(b, token, best_[at])))) break;
    while (next < tries.size() && !before(tries[next].score, tries[next].id, token.score, token.id)) next++;
    if (next < tries.size()) {
      token = tries[next++];
    } else {
      know_all();
      token = best_before(b, token);
    }
    measure(b, 0, panels_, token, &(sums = {}));
  }
  set(normed, b, token);
}

}  // namespace doge
