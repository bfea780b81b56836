// How each row of a batch is drawn, and the noise of its tokens.
#pragma once

#include <cmath>
#include <limits>

#include "doge_kernels.h"
#include "isa.h"

namespace doge {

constexpr double kWeight = 0x1p40;  // of the best token: whole numbers, so that every order has the same sum
inline int64_t weight_of_score(float score, float best) {
  return static_cast<int64_t>(std::exp(static_cast<double>(score) - static_cast<double>(best)) * kWeight);
}

// Whether a token comes before another one in descending order.
inline bool before(float score, int64_t id, float other, int64_t other_id) {
  return score > other || (score == other && id < other_id);
}

// How each row of a batch is drawn, and which tokens it has seen.
class DrawnRows {
 public:
  // Throws Error where a setting is out of its range, or no token is allowed.
  DrawnRows(const std::vector<Draw>& draws, int64_t vocab);

  struct Row {
    Draw draw;
    float temperature;    // 1 where the best token is taken
    int64_t count;        // top_k; 1 where the best token is taken, 0 where all tokens are drawn from
    bool nucleus;         // all tokens, of which top_p or min_p removes some
    std::vector<uint64_t> seen, biased, allowed;  // a bit a token; empty: none, none, all
    bool noisy() const { return count == 0; }  // candidates are compared with their noise
    uint64_t special(int64_t panel) const {
      const auto p = static_cast<size_t>(panel);
      return (seen.empty() ? 0 : seen[p]) | (biased.empty() ? 0 : biased[p]);
    }
    // The tokens of a panel that may come.
    uint64_t real(int64_t panel) const { return allowed[static_cast<size_t>(panel)]; }
    // A logit with bias and penalty.
    float adjusted(int64_t id, float logit) const;
  };
  const Row& operator[](int64_t row) const { return rows_[static_cast<size_t>(row)]; }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  void add(int64_t row, int64_t token);

 private:
  std::vector<Row> rows_;
};

// The noise of one row's tokens at one position.
class Noise {
 public:
  Noise(const Draw& draw, int64_t position)
      : key_{static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.row)},
        rest_{static_cast<uint32_t>(position), static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32),
              static_cast<uint32_t>(draw.seed >> 32)} {}
  const uint32_t* words(int64_t panel) {  // until the next call
    if (panel != panel_) isa().random_words(static_cast<uint32_t>(panel * (kPanel / 4)), rest_, key_, words_);
    panel_ = panel;
    return words_;
  }
  double of(int64_t id) {
    const double word = words(id / kPanel)[id % kPanel];
    return -std::log(-std::log((word + 0.5) * 0x1p-32));
  }

 private:
  uint32_t key_[2], rest_[3], words_[kPanel];
  int64_t panel_ = -1;
};

}  // namespace doge
