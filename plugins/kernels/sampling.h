// The next tokens drawn from the logits of a head, as phases of a team: the best of score + Gumbel noise.
#pragma once

#include "best_tokens.h"
#include "drawn_rows.h"
#include "head.h"

namespace doge {

class DrawJob {
 public:
  // A token behind each of `wanted`, one of `rows` each, at `positions`: when `run` is called. Others as of TopTokensJob.
  DrawJob(const Head::Parts& parts, Dtype dtype, const DrawnRows& rows, const void* hidden, const int64_t* wanted,
          const int64_t* positions, int64_t* ids, float* values, Threads& threads);
  ~DrawJob();
  void run(Team::Worker& worker);
  size_t width() const;
  void announce(const Team::Worker& worker, PrefetchQueue* queue) const { announce_head(weight_, worker, queue); }

 private:
  struct Candidate {
    double value;  // with its noise, where it has any
    float score;
    int64_t id;
  };
  // What the probabilities of a row sum to; where scores are bounds, from `low` to `high`.
  struct Sums {
    double low = 0, high = 0, low_before = 0, high_before = 0;  // of all, and of those before a token
    float highest = kNone;                                      // a bound of the best score
  };
  // What one worker found, a row of the batch each. Padded, since workers write side by side.
  struct alignas(64) Found {
    uint64_t turn = 0;    // the call of `run` that it is of
    uint64_t looked = 0;  // the same, once it has taken part in the first phase: others read it in the second
    std::vector<Best> looks_best;                    // by estimates, with noise
    std::vector<std::vector<Candidate>> candidates;  // computed
    std::vector<float> floors;                       // NaN: not known yet
    std::vector<float> largest;                      // score
    std::vector<double> mass;                        // of a bounded row: sum of e^(score - reference), about
    std::vector<float> reference;
    std::vector<float> computed;                     // the largest score that is no bound
    std::vector<Sums> sums;
  };
  Found& own(Team::Worker& worker, uint64_t turn);
  std::pair<int64_t, int64_t> part(int64_t number) const;

  void look(const LastRows::Normed& normed, int64_t chunk, Found* found);
  float floor(const LastRows::Normed& normed, int64_t b, uint64_t turn) const;
  float floor_of_scores(const LastRows::Normed& normed, int64_t b) const;
  void scan(const LastRows::Normed& normed, int64_t b, int64_t part, uint64_t turn, Found* found);
  void choose(const LastRows::Normed& normed, int64_t b, uint64_t turn);
  Candidate best_of_few(int64_t b, std::vector<Candidate>* few) const;
  void set(const LastRows::Normed& normed, int64_t b, const Candidate& token);
  float logit(const LastRows::Normed& normed, int64_t b, int64_t id) const;
  template <class Set>
  void exact(const LastRows::Normed& normed, int64_t b, const std::vector<int64_t>& ids, Set&& set) const;

  // nucleus.cc
  void measure(int64_t b, int64_t first, int64_t end, const Candidate& token, Sums* sums) const;
  void finish(const LastRows::Normed& normed, int64_t b, uint64_t turn);
  int verdict(int64_t b, const Candidate& token, const Sums& sums, float computed) const;
  void compute_all(const LastRows::Normed& normed, int64_t b);
  bool kept(int64_t b, const Candidate& token, float best) const;
  Candidate best_before(int64_t b, const Candidate& limit) const;

  float* scores(int64_t b) const { return memory_ + static_cast<size_t>(3 * b * panels_ * kPanel); }
  float* uppers(int64_t b) const { return scores(b) + panels_ * kPanel; }
  float* highs(int64_t b) const { return scores(b) + 2 * panels_ * kPanel; }
  float* maxima(int64_t b) const { return maxima_.data() + b * groups_; }
  bool bounded(int64_t b) const { return screened_ && rows_[b].nucleus; }

  const Head::Parts& parts_;
  const DrawnRows& rows_;
  bool screened_;
  const Packed& weight_;
  int64_t batch_, panels_, parts_of_row_, groups_;
  const int64_t* positions_;
  int64_t* ids_;
  float* values_;
  LastRows last_;
  std::vector<Found> found_;  // one a worker
  std::vector<std::vector<Candidate>> tries_;  // of each row with a nucleus: best first
  std::vector<float> best_;   // of each row: the largest score, about that where scores are bounds
  mutable Vector maxima_;     // [batch, groups]: the largest scores of some tokens each
  Scratch<float> own_memory_;
  float* memory_;             // of each row and all panels: scores, upper bounds of values, and of scores
};

}  // namespace doge
