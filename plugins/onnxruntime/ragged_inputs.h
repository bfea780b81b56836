// What a ragged call of DecodeTokens has in the place of a batch and of padding.
#pragma once

#include "attention_inputs.h"

namespace doge::ort {

struct RaggedCall {
  std::vector<CallRow> rows;  // empty: the call is no ragged one
  int64_t pool = 0;
  const int64_t *wanted = nullptr, *rope_lengths = nullptr;
  int64_t wanted_count = 0;
  explicit operator bool() const { return !rows.empty(); }
};

// Throws Error, naming what is wrong: offsets [rows + 1] that do not add up to the tokens of `ids`, a slot outside the
// pool or twice among `slots` [rows], a token in `wanted` that is not there, a length below 0.
RaggedCall read_ragged(const Tensor& ids, const Tensor& offsets, const Tensor& slots, const Tensor& wanted,
                       const Tensor& lengths, int64_t pool, int64_t steps);

// The io of such a call, but for its caches. `places`: position_ids of a bounded cache, else cache_position [rows].
AttentionIO ragged_io(ElementType element, const RaggedCall& call, const Tensor& places, bool bounded);

}  // namespace doge::ort
