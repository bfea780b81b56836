// How the rows of a batch are drawn.
#include "drawn_rows.h"

#include <algorithm>
#include <cmath>

namespace doge {

DrawnRows::DrawnRows(const std::vector<Draw>& draws, int64_t vocab) {
  const int64_t panels = (vocab + kPanel - 1) / kPanel;
  for (size_t b = 0; b < draws.size(); b++) {
    const Draw& draw = draws[b];
    const auto refuse = [b](const char* what, double value) {
      throw Error("Row " + std::to_string(b) + ": " + what + " cannot be " + std::to_string(value) + ".");
    };
    if (!(draw.temperature >= 0) || !std::isfinite(draw.temperature)) refuse("temperature", draw.temperature);
    if (draw.top_k < 0) refuse("top_k", static_cast<double>(draw.top_k));
    if (!(draw.top_p >= 0 && draw.top_p <= 1)) refuse("top_p", draw.top_p);
    if (!(draw.min_p >= 0 && draw.min_p <= 1)) refuse("min_p", draw.min_p);
    if (!(draw.repetition_penalty > 0) || !std::isfinite(draw.repetition_penalty))
      refuse("repetition_penalty", draw.repetition_penalty);
    Row row;
    row.draw = draw;
    const bool greedy = draw.temperature == 0;
    row.temperature = greedy ? 1 : draw.temperature;
    row.count = greedy ? 1 : draw.top_k >= vocab ? 0 : draw.top_k;
    row.nucleus = row.count == 0 && (draw.top_p < 1 || draw.min_p > 0);
    row.allowed.assign(static_cast<size_t>(panels), ~uint64_t{0});
    if (draw.allowed != nullptr) std::copy_n(draw.allowed, panels, row.allowed.begin());
    if (vocab % kPanel != 0) row.allowed.back() &= (uint64_t{1} << (vocab % kPanel)) - 1;
    if (std::all_of(row.allowed.begin(), row.allowed.end(), [](uint64_t bits) { return bits == 0; }))
      throw Error("Row " + std::to_string(b) + ": no token is allowed.");
    if (draw.bias != nullptr) {
      row.biased.assign(static_cast<size_t>(panels), 0);
      for (int64_t id = 0; id < vocab; id++) {
        if (!(draw.bias[id] < std::numeric_limits<float>::infinity())) refuse("a bias", draw.bias[id]);
        if (draw.bias[id] != 0) row.biased[static_cast<size_t>(id / kPanel)] |= uint64_t{1} << id % kPanel;
      }
    }
    if (draw.repetition_penalty != 1) row.seen.assign(static_cast<size_t>(panels), 0);
    rows_.push_back(std::move(row));
    for (int64_t token : draw.seen) {
      if (token < 0 || token >= vocab)
        throw Error("Row " + std::to_string(b) + ": it has seen " + std::to_string(token) + ", which is no token.");
      add(static_cast<int64_t>(b), token);
    }
  }
}

void DrawnRows::add(int64_t row, int64_t token) {
  std::vector<uint64_t>& seen = rows_[static_cast<size_t>(row)].seen;
  if (!seen.empty()) seen[static_cast<size_t>(token / kPanel)] |= uint64_t{1} << token % kPanel;
}

float DrawnRows::Row::adjusted(int64_t id, float logit) const {
  const auto p = static_cast<size_t>(id / kPanel);
  const uint64_t bit = uint64_t{1} << id % kPanel;
  if (!biased.empty() && biased[p] & bit) logit += draw.bias[id];
  if (!seen.empty() && seen[p] & bit) logit = logit < 0 ? logit * draw.repetition_penalty : logit / draw.repetition_penalty;
  return logit;
}

}  // namespace doge
