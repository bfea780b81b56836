#include "ragged_inputs.h"

namespace doge::ort {

RaggedCall read_ragged(const Tensor& ids, const Tensor& offsets, const Tensor& slots, const Tensor& wanted,
                       const Tensor& lengths, int64_t pool, int64_t steps) {
  const size_t rank = ids.shape.rank();
  if ((rank != 1 && rank != 2) || (rank == 2 && ids.shape[0] != 1) || ids.type != kInt64)
    throw Error("input_ids has the shape " + ids.shape.text() + ", and a ragged call has [1, tokens] int64.");
  const int64_t tokens = ids.shape.elements(), count = offsets.shape.elements() - 1;
  const int64_t* ends = offsets.expect("offsets", kInt64, {count + 1}).as<int64_t>();
  if (count < 1) throw Error("offsets has the end of no row.");
  if (ends[0] != 0 || ends[count] != tokens)
    throw Error("offsets go from " + std::to_string(ends[0]) + " to " + std::to_string(ends[count]) +
                ", and the call has the tokens from 0 to " + std::to_string(tokens) + ".");
  const int64_t* numbers = slots.expect("slots", kInt64, {count}).as<int64_t>();
  RaggedCall call;
  call.pool = pool;
  std::vector<bool> taken(static_cast<size_t>(pool));
  for (int64_t row = 0; row < count; ++row) {
    if (ends[row + 1] <= ends[row] || ends[row + 1] > tokens)
      throw Error("offsets give row " + std::to_string(row) + " the tokens from " + std::to_string(ends[row]) + " to " +
                  std::to_string(ends[row + 1]) + ": each row has one at least.");
    const int64_t slot = numbers[row];
    if (slot < 0 || slot >= pool)
      throw Error("slots has " + std::to_string(slot) + ", and the pool has " + std::to_string(pool) + " slots.");
    if (taken[static_cast<size_t>(slot)]) throw Error("slots has " + std::to_string(slot) + " twice.");
    taken[static_cast<size_t>(slot)] = true;
    call.rows.push_back({ends[row], ends[row + 1] - ends[row], slot});
  }
  call.wanted_count = wanted.shape.elements();
  const int64_t* places = wanted.expect("wanted", kInt64, {call.wanted_count}).as<int64_t>();
  for (int64_t i = 0; i < call.wanted_count; ++i)
    if (places[i] < 0 || places[i] >= tokens)
      throw Error("wanted has " + std::to_string(places[i]) + ", and the call has " + std::to_string(tokens) + " tokens.");
  if (call.wanted_count > 0) {
    if (steps > 1) throw Error("wanted goes with one step, and steps is " + std::to_string(steps) + ".");
    call.wanted = places;
  }
  if (lengths.shape.elements() > 0) call.rope_lengths = lengths.expect("rope_lengths", kInt64, {count}).as<int64_t>();
  return call;
}

AttentionIO ragged_io(ElementType element, const RaggedCall& call, const Tensor& places, bool bounded) {
  AttentionIO io;
  io.dtype = dtype_of(element);
  io.batch = static_cast<int64_t>(call.rows.size());
  io.sequence = call.rows.front().count;
  io.rows = call.rows.data();
  io.bounded = bounded;
  if (bounded) {
    const int64_t* positions = places.as<int64_t>();
    for (int64_t i = 0; i < io.tokens(); ++i)
      if (positions[i] < 0)
        throw Error("position_ids has " + std::to_string(positions[i]) + ", and positions are not negative.");
  } else {
    io.cache_position = places.expect("cache_position", kInt64, {io.batch}).as<int64_t>();
  }
  return io;
}

}  // namespace doge::ort
