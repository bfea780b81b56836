// One pass over the panels leaves an upper bound of every token's value, its score or score + noise. A few that look best
// give a floor that the chosen one reaches; then all whose bound reaches it are computed. So the choice is that among
// all tokens, whatever screen the head has.
#include "sampling.h"

#include <cmath>
#include <functional>

#include "isa.h"

namespace doge {
namespace {

constexpr int64_t kPartPanels = 16;  // at least so many panels are one chunk
constexpr int64_t kParts = 16;       // and so many chunks a row are enough
constexpr int64_t kGroup = 16;       // lanes whose largest scores are kept, of one chunk each
constexpr size_t kTries = 3;         // of a nucleus: so many with the best values are known, should the best not be in it
constexpr float kHeavy = 6.9f;       // log 1000: what has this share of all is computed, so that bounds of the sum are close

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

float below(double value) { return std::nextafter(static_cast<float>(value), kNone); }

Scratch<float>& tile_memory() {
  thread_local Scratch<float> memory;
  return memory;
}

}  // namespace

DrawJob::DrawJob(const Head::Parts& parts, Dtype dtype, const DrawnRows& rows, const void* hidden,
                 const int64_t* wanted, const int64_t* positions, int64_t* ids, float* values, Threads& threads)
    : parts_(parts), rows_(rows), screened_([&] {
        if (parts.screen.empty() || parts.weight.empty()) return !parts.screen.empty();
        // The bounds of an int8 head let many tokens through where many are wanted.
        for (int64_t b = 0; b < rows.size(); b++)
          if (rows[b].nucleus || rows[b].count > 1) return false;
        return true;
      }()),
      weight_(screened_ ? parts.screen.weight() : parts.weight), batch_(rows.size()), panels_(weight_.panels()),
      parts_of_row_(std::min(kParts, ceil_div(panels_, kPartPanels))), groups_(ceil_div(panels_, kHeadPanels) * kGroup),
      positions_(positions), ids_(ids), values_(values), last_(parts, weight_, screened_ ? &parts.screen : nullptr, dtype, batch_, 1, hidden, wanted),
      found_(std::max<size_t>(1, std::min(threads.count(), Team::kWorkers))), tries_(static_cast<size_t>(batch_)),
      best_(static_cast<size_t>(batch_)), maxima_(static_cast<size_t>(batch_ * groups_)),
      memory_(own_memory_.get(static_cast<size_t>(3 * batch_ * panels_ * kPanel))) {}
DrawJob::~DrawJob() = default;
size_t DrawJob::width() const { return found_.size(); }

std::pair<int64_t, int64_t> DrawJob::part(int64_t number) const {
  return {panels_ * number / parts_of_row_, panels_ * (number + 1) / parts_of_row_};
}

void DrawJob::run(Team::Worker& worker) {
  const LastRows::Normed normed = last_.prepare(worker);
  const uint64_t turn = worker.next_phase();
  bool nucleus = false;
  for (int64_t b = 0; b < batch_; b++) nucleus = nucleus || rows_[b].nucleus;
  const int64_t parts = batch_ * parts_of_row_, each = parts_of_row_;
  worker.phase(ceil_div(panels_, kHeadPanels), [&](int64_t c) {
    Found& found = own(worker, turn);
    found.looked = turn;
    look(normed, c, &found);
  });
  worker.phase(parts, [&](int64_t c) { scan(normed, c / each, c % each, turn, &own(worker, turn)); });
  worker.phase(batch_, [&](int64_t b) { choose(normed, b, turn); });
  if (!nucleus) return;
  worker.phase(parts, [&](int64_t c) {
    const int64_t b = c / each;
    const auto [first, end] = part(c % each);
    const auto at = static_cast<size_t>(b);
    if (rows_[b].nucleus) measure(b, first, end, tries_[at].front(), &own(worker, turn).sums[at]);
  });
  worker.phase(batch_, [&](int64_t b) {
    if (rows_[b].nucleus) finish(normed, b, turn);
  });
}

DrawJob::Found& DrawJob::own(Team::Worker& worker, uint64_t turn) {
  Found& found = found_[worker.index()];
  if (found.turn == turn) return found;
  found.turn = turn;
  const auto rows = static_cast<size_t>(batch_);
  found.looks_best.resize(rows);
  found.candidates.resize(rows);
  for (size_t b = 0; b < rows; b++) {
    found.looks_best[b].reset(rows_[static_cast<int64_t>(b)].nucleus ? kTries : 1);
    found.candidates[b].clear();
  }
  found.floors.assign(rows, std::nanf(""));
  found.largest.assign(rows, kNone);
  found.mass.assign(rows, 0);
  found.reference.assign(rows, kNone);
  found.computed.assign(rows, kNone);
  found.sums.assign(rows, {});
  return found;
}

// The bounds of the panels of one chunk.
void DrawJob::look(const LastRows::Normed& normed, int64_t chunk, Found* found) {
  const int64_t k = weight_.k();
  float* tile = tile_memory().get((kHeadRows + 2) * kPanel);
  float *above = tile + kHeadRows * kPanel, *under = above + kPanel;
  for (int64_t b = 0; b < batch_; b++) std::fill_n(maxima(b) + chunk * kGroup, kGroup, kNone);
  for (int64_t first = 0; first < batch_; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, batch_ - first);
    for (int64_t p = chunk * kHeadPanels; p < std::min((chunk + 1) * kHeadPanels, panels_); p++) {
      if (normed.stride)
        weight_.multiply(p, count, normed.digits + static_cast<size_t>(first) * normed.stride,
                         static_cast<int64_t>(normed.stride), tile, kPanel);
      else
        weight_.multiply(p, count, normed.floats + first * k, k, tile, kPanel);
      for (int64_t r = 0; r < count; r++) {
        const int64_t b = first + r;
        const auto at = static_cast<size_t>(b);
        const DrawnRows::Row& row = rows_[b];
        float *value = tile + r * kPanel, *x = value;
        if (screened_) parts_.screen.upper(p, normed.reach[b], value, x = above);
        for (uint64_t bits = row.special(p) & row.real(p); bits; bits &= bits - 1) {
          const int64_t i = __builtin_ctzll(bits), id = p * kPanel + i;
          if (!screened_) {
            value[i] = row.adjusted(id, value[i]);
            continue;
          }
          const float logit = value[i], high = row.adjusted(id, x[i]), low = row.adjusted(id, logit - (x[i] - logit));
          value[i] = row.adjusted(id, logit);
          x[i] = value[i] + std::max(high - value[i], value[i] - low) * (1 + 0x1p-20f);  // it is a bound on either side
        }
        Noise noise(row.draw, positions_[b]);
        const uint32_t* words = row.noisy() ? noise.words(p) : nullptr;
        float *s = scores(b) + p * kPanel, *u = uppers(b) + p * kPanel, *h = highs(b) + p * kPanel;
        Best& best = found->looks_best[at];
        const uint64_t real = row.real(p);
        uint64_t bits = isa().draw_bounds(value, x, row.temperature, words, best.floor(), s, h, u) & real;
        for (uint64_t never = ~real; never; never &= never - 1) {
          const int64_t i = __builtin_ctzll(never);
          s[i] = h[i] = u[i] = kNone;
        }
        if (row.nucleus) {
          const float largest = isa().largest(kPanel, s);
          found->largest[at] = std::max(found->largest[at], largest);
          if (screened_) {
            if (found->reference[at] == kNone) found->reference[at] = largest;
            found->mass[at] += isa().probabilities(s, found->reference[at], kNone, under);
          }
        }
        if (!words) {
          float* group = maxima(b) + chunk * kGroup;
          for (int64_t i = 0; i < kPanel; i++) group[i % kGroup] = std::max(group[i % kGroup], s[i]);
          continue;
        }
        const auto estimate = [&](int64_t i) { return s[i] + static_cast<float>(noise.of(p * kPanel + i)); };
        if (__builtin_popcountll(bits) > 8) {  // the floor is low yet: the best one of them raises it
          const int64_t i = std::max_element(u, u + kPanel) - u;
          best.raise(estimate(i), p * kPanel + i);
          bits &= isa().not_below(u, best.floor()) & ~(uint64_t{1} << i);
        }
        for (; bits; bits &= bits - 1) {
          const int64_t i = __builtin_ctzll(bits);
          best.raise(estimate(i), p * kPanel + i);
        }
      }
    }
  }
}

// set(i, score of ids[i]) for all of them.
template <class Set>
void DrawJob::exact(const LastRows::Normed& normed, int64_t b, const std::vector<int64_t>& ids, Set&& set) const {
  const DrawnRows::Row& row = rows_[b];
  if (!screened_) {
    for (size_t i = 0; i < ids.size(); i++) set(i, scores(b)[ids[i]]);
    return;
  }
  parts_.screen.exact(
      normed.floats + b * weight_.k(), normed.digits + static_cast<size_t>(b) * normed.stride, ids.size(),
      [&](size_t i) { return ids[i]; },
      [&](size_t i, float logit) { set(i, number(row.adjusted(ids[i], logit) / row.temperature)); });
}

// A floor for row b, which as many tokens reach as are wanted.
float DrawJob::floor(const LastRows::Normed& normed, int64_t b, uint64_t turn) const {
  const DrawnRows::Row& row = rows_[b];
  if (!row.noisy()) return floor_of_scores(normed, b);
  const size_t wanted = row.nucleus ? kTries : 1;
  Best best;
  best.reset(wanted);
  for (const Found& found : found_)
    if (found.looked == turn) best.push_all(found.looks_best[static_cast<size_t>(b)]);
  std::vector<int64_t> ids;
  for (const Token& token : best.sorted()) ids.push_back(token.id);
  if (ids.size() < wanted) return kNone;
  Noise noise(row.draw, positions_[b]);
  double least = std::numeric_limits<double>::infinity();
  exact(normed, b, ids, [&](size_t i, float score) { least = std::min(least, score + noise.of(ids[i])); });
  return below(least);
}

// The same by scores alone: of the largest of each group as many reach the floor as are wanted.
float DrawJob::floor_of_scores(const LastRows::Normed& normed, int64_t b) const {
  const auto wanted = static_cast<size_t>(rows_[b].count);
  Vector largest(maxima(b), maxima(b) + groups_);
  while (largest.size() % 2 == 0 && largest.size() > std::max<size_t>(256, 8 * wanted)) {
    const size_t half = largest.size() / 2;
    for (size_t i = 0; i < half; i++) largest[i] = std::max(largest[i], largest[i + half]);
    largest.resize(half);
  }
  if (wanted > largest.size()) return kNone;
  const auto nth = largest.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
  std::nth_element(largest.begin(), nth, largest.end(), std::greater<>());
  if (!screened_ || *nth == kNone) return *nth;
  float least = std::numeric_limits<float>::infinity();
  const float *s = scores(b), *h = highs(b);
  std::vector<int64_t> ids;
  for (int64_t p = 0; p < panels_; p++)
    for (uint64_t bits = isa().not_below(s + p * kPanel, *nth) & rows_[b].real(p); bits; bits &= bits - 1) {
      const int64_t id = p * kPanel + __builtin_ctzll(bits);
      const float low = 2 * s[id] - h[id];
      if (!std::isfinite(low)) return kNone;
      least = std::min(least, low);
      ids.push_back(id);
    }
  if (parts_.weight.empty()) return below(least);
  // Of int8 the bounds are wide: what looks best is computed.
  least = std::numeric_limits<float>::infinity();
  exact(normed, b, ids, [&](size_t, float score) { least = std::min(least, score); });
  return least;
}

// What of a part of row b reaches the floor, and what is much of a nucleus.
void DrawJob::scan(const LastRows::Normed& normed, int64_t b, int64_t number_of_part, uint64_t turn, Found* found) {
  const auto [first, end] = part(number_of_part);
  const auto at = static_cast<size_t>(b);
  const DrawnRows::Row& row = rows_[b];
  float& floor_here = found->floors[at];
  if (std::isnan(floor_here)) floor_here = floor(normed, b, turn);
  std::vector<int64_t> ids;
  float heavy = std::numeric_limits<float>::infinity();
  if (bounded(b)) {
    float most = kNone;
    double mass = 0;
    for (const Found& each : found_)
      if (each.looked == turn) most = std::max(most, each.reference[at]);
    for (const Found& each : found_)
      if (each.looked == turn && each.reference[at] != kNone) mass += each.mass[at] * std::exp(static_cast<double>(each.reference[at] - most));
    if (std::isfinite(most)) heavy = most + static_cast<float>(std::log(mass)) - kHeavy;
  }
  for (int64_t p = first; p < end; p++) {
    uint64_t bits = isa().not_below(uppers(b) + p * kPanel, floor_here);
    if (bounded(b)) bits |= isa().not_below(scores(b) + p * kPanel, heavy);
    for (bits &= row.real(p); bits; bits &= bits - 1) ids.push_back(p * kPanel + __builtin_ctzll(bits));
  }
  Noise noise(row.draw, positions_[b]);
  exact(normed, b, ids, [&](size_t i, float score) {
    const int64_t id = ids[i];
    if (bounded(b)) {
      scores(b)[id] = highs(b)[id] = score;
      found->computed[at] = std::max(found->computed[at], score);
    }
    if (uppers(b)[id] < floor_here) return;
    const double value = score + (row.noisy() ? noise.of(id) : 0.0);
    if (value >= floor_here) found->candidates[at].push_back({value, score, id});
  });
}

void DrawJob::choose(const LastRows::Normed& normed, int64_t b, uint64_t turn) {
  const auto at = static_cast<size_t>(b);
  const DrawnRows::Row& row = rows_[b];
  std::vector<Candidate>& all = tries_[at];
  all.clear();
  best_[at] = kNone;
  for (const Found& found : found_) {
    if (found.turn != turn) continue;
    all.insert(all.end(), found.candidates[at].begin(), found.candidates[at].end());
    best_[at] = std::max(best_[at], found.largest[at]);
  }
  if (all.empty()) {  // the logits are no numbers, of which there are no bounds
    int64_t p = 0;
    while (row.real(p) == 0) p++;
    all.push_back({kNone, kNone, p * kPanel + __builtin_ctzll(row.real(p))});
  }
  const auto better_value = [](const Candidate& a, const Candidate& c) {
    return a.value > c.value || (a.value == c.value && a.id < c.id);
  };
  if (!row.noisy())
    set(normed, b, best_of_few(b, &all));
  else if (row.nucleus)
    std::sort(all.begin(), all.end(), better_value);
  else
    set(normed, b, *std::min_element(all.begin(), all.end(), better_value));
}

// The drawn one of the best tokens, or the best one.
DrawJob::Candidate DrawJob::best_of_few(int64_t b, std::vector<Candidate>* few) const {
  const DrawnRows::Row& row = rows_[b];
  const Draw& draw = row.draw;
  std::sort(few->begin(), few->end(), [](const Candidate& a, const Candidate& c) { return before(a.score, a.id, c.score, c.id); });
  const float best = few->front().score;
  if (draw.temperature == 0 || !std::isfinite(best)) return few->front();
  size_t left = std::min(few->size(), static_cast<size_t>(row.count));
  while (left < few->size() && (*few)[left].score == (*few)[left - 1].score) left++;  // equals of the last one stay
  if (draw.top_p < 1 || draw.min_p > 0) {
    int64_t total = 0, sum = 0;
    for (size_t i = 0; i < left; i++) total += weight_of_score((*few)[i].score, best);
    size_t keep = 0;
    for (; keep < left; keep++) {
      const int64_t own = weight_of_score((*few)[keep].score, best);
      if (keep > 0 && draw.top_p < 1 && !(static_cast<double>(sum) < draw.top_p * static_cast<double>(total))) break;
      if (keep > 0 && static_cast<double>(own) < draw.min_p * kWeight) break;
      sum += own;
    }
    left = keep;
  }
  Noise noise(draw, positions_[b]);
  size_t drawn = 0;
  for (size_t i = 0; i < left; i++) {
    Candidate& token = (*few)[i];
    if (token.score == kNone) break;
    token.value = token.score + noise.of(token.id);
    const Candidate& other = (*few)[drawn];
    if (token.value > other.value || (token.value == other.value && token.id < other.id)) drawn = i;
  }
  return (*few)[drawn];
}

// The logit of a token as the head gives it.
float DrawJob::logit(const LastRows::Normed& normed, int64_t b, int64_t id) const {
  float result = 0, tile[kPanel];
  const float* x = normed.floats + b * weight_.k();
  const uint8_t* digits = normed.digits + static_cast<size_t>(b) * normed.stride;
  if (screened_) {
    parts_.screen.exact(x, digits, 1, [id](size_t) { return id; }, [&](size_t, float value) { result = value; });
    return result;
  }
  if (normed.stride)
    weight_.multiply(id / kPanel, 1, digits, static_cast<int64_t>(normed.stride), tile, kPanel);
  else
    weight_.multiply(id / kPanel, 1, x, weight_.k(), tile, kPanel);
  return tile[id % kPanel];
}

void DrawJob::set(const LastRows::Normed& normed, int64_t b, const Candidate& token) {
  ids_[b] = token.id;
  values_[b] = std::isfinite(token.score) ? logit(normed, b, token.id) : token.score;
}

}  // namespace doge
