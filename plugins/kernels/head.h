// A head's weights as the loops want them, and its best tokens as phases of a team.
#pragma once

#include "packed.h"
#include "screen.h"
#include "team.h"

namespace doge {

struct Head::Parts {
  Vector norm;
  float epsilon;
  Matrix original;
  Packed weight;  // empty where only the screen is used; of int8 both are, the screen for a single token
  Screen screen;
};

constexpr int64_t kHeadRows = 48;      // rows that meet a panel at once
constexpr int64_t kHeadPanels = 4;  // panels of one chunk

class TopTokensJob {
 public:
  // The `count` best tokens of the last of `sequence` positions of each of `batch` rows. `hidden`, of `dtype`, need
  // not be there before the first worker runs. ids, values: [batch, count].
  TopTokensJob(const Head::Parts& parts, Dtype dtype, int64_t batch, int64_t sequence, const void* hidden,
               int64_t count, int64_t* ids, float* values, Threads& threads);
  ~TopTokensJob();
  // May be called again, as another stage of the team.
  void run(Team::Worker& worker);
  // How many threads can be of use.
  size_t width() const;
  // What `worker` reads, as one mark.
  void announce(const Team::Worker& worker, Ahead* ahead) const;

 private:
  struct Rows;
  struct Found;
  Rows prepare(Team::Worker& worker);
  void look(const Rows& rows, int64_t chunk, Found* found) const;
  void compute(const Rows& rows, int64_t b, uint64_t turn, Found* found) const;
  void choose(const Rows& rows, int64_t b, uint64_t turn);

  const Head::Parts& parts_;
  bool screened_;
  const Packed& weight_;
  Dtype dtype_;
  int64_t batch_, sequence_, count_;
  size_t stride_;  // bytes of a quantized row
  const void* hidden_;
  int64_t* ids_;
  float* values_;
  std::vector<Found> found_;  // one a worker
  Vector floats_;             // [batch, hidden]: of many rows, as digits_ and reach_
  Scratch<uint8_t> digits_;
  Vector reach_;
};

}  // namespace doge
