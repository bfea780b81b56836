// A head's weights as the loops want them, and its best tokens as phases of a team.
#pragma once

#include "packed.h"
#include "logit_screen.h"
#include "many_rows.h"
#include "team.h"

namespace doge {

struct Head::Parts {
  Vector norm;
  float epsilon;
  Matrix original;
  Packed weight;  // empty where only the screen is used; of int8 both are, the screen for a single token
  LogitScreen screen;
  LogitScreen rough;  // of quantized weights, where the processor has rough products
};

constexpr int64_t kHeadRows = 48;      // rows that meet a panel at once
constexpr int64_t kHeadPanels = 4;  // panels of one chunk

// The hidden states of the last positions of a batch, or of some tokens, normalised and quantized for a head.
class LastRows {
 public:
  struct Normed {
    float* floats;    // [batch, hidden]
    uint8_t* digits;  // [batch] rows of quantize_row, `stride` bytes each; 0: not quantized
    float* reach;     // [batch]: of the screen
    size_t stride;
  };
  // For the panels of `weight`, which are `screen`'s where there is one. hidden, wanted: as TopTokensJob has them.
  LastRows(const Head::Parts& parts, const Packed& weight, const LogitScreen* screen, Dtype dtype, int64_t batch, int64_t sequence,
           const void* hidden, const int64_t* wanted);
  Normed prepare(Team::Worker& worker);

 private:
  const Head::Parts& parts_;
  const Packed& weight_;
  const LogitScreen* screen_;
  Dtype dtype_;
  int64_t batch_, sequence_;
  size_t stride_;
  const void* hidden_;
  const int64_t* wanted_;
  Vector floats_, reach_;  // of many rows, as digits_
  Scratch<uint8_t> digits_;
};

// What `worker` reads of a head's panels, as one mark.
void announce_head(const Packed& weight, const Team::Worker& worker, PrefetchQueue* queue);

class TopTokensJob {
 public:
  // The `count` best tokens of the last of `sequence` positions of each of `batch` rows, or of the tokens whose
  // numbers are in `wanted` [batch]. `hidden`, of `dtype`, and what is in `wanted` need not be there before the first
  // worker runs. ids, values: [batch, count].
  TopTokensJob(const Head::Parts& parts, Dtype dtype, int64_t batch, int64_t sequence, const void* hidden,
               int64_t count, int64_t* ids, float* values, Threads& threads, const int64_t* wanted = nullptr);
  ~TopTokensJob();
  // May be called again, as another stage of the team.
  void run(Team::Worker& worker);
  // How many threads can be of use.
  size_t width() const;
  // What `worker` reads, as one mark.
  void announce(const Team::Worker& worker, PrefetchQueue* queue) const;

 private:
  struct Found;
  void look(const LastRows::Normed& rows, int64_t chunk, Found* found) const;
  void compute(const LastRows::Normed& rows, int64_t b, uint64_t turn, Found* found) const;
  void choose(const LastRows::Normed& rows, int64_t b, uint64_t turn);

  const Head::Parts& parts_;
  const LogitScreen& screen_;
  bool screened_;
  const Packed& weight_;
  int64_t batch_, count_;
  int64_t* ids_;
  float* values_;
  LastRows last_;
  std::unique_ptr<ManyRows> many_;
  std::vector<Found> found_;  // one a worker
};

}  // namespace doge
