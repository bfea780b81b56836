#include "attention.h"

#include <algorithm>
#include <atomic>

#include "attention_bounded.h"
#include "attention_cached.h"
#include "attention_ragged.h"
#include "half.h"

namespace doge {
namespace {

// Whether all rows have io.sequence new tokens, and find the same in their caches.
bool is_uniform(const AttentionIO& io) {
  for (int64_t b = 0; io.rows && b < io.batch; b++)
    if (io.rows[b].count != io.sequence) return false;
  return !io.rows || !io.bounded || io.batch == 1 || io.sequence == 1;
}

}  // namespace

std::unique_ptr<AttentionJob> make_attention_job(const AttentionParts& parts, const AttentionIO& io,
                                                 const AttentionRows& rows, Arena& arena) {
  return is_uniform(io) ? make_uniform_attention(parts, io, rows, arena) : make_ragged_attention(parts, io, rows, arena);
}

std::unique_ptr<AttentionJob> make_uniform_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, Arena& arena) {
  if (io.bounded) return make_bounded_attention(parts, io, rows, arena);
  const int64_t* bases = io.cache_position;
  if (bases == nullptr) {
    auto* past = reinterpret_cast<int64_t*>(arena.take(2 * io.batch));
    std::fill(past, past + io.batch, io.past);
    bases = past;
  }
  return make_cached_attention(parts, io, rows, bases, arena);
}

void dynamic_mask_attention(const AttentionConfig& config, const AttentionWeights& weights, const AttentionIO& io,
                            const void* query, const void* key, const void* value, void* output, Threads& threads) {
  const AttentionParts parts(config, weights);
  const int64_t rows = io.batch ? io.tokens() : 0, width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  if (rows == 0) return;
  thread_local Scratch<float> memory;
  float* q = memory.get(static_cast<size_t>(rows * (2 * width + 2 * kv_width)));
  float *k = q + rows * width, *v = k + rows * kv_width, *out = v + rows * kv_width;
  read_floats(io.dtype, query, 0, rows * width, q);
  read_floats(io.dtype, key, 0, rows * kv_width, k);
  read_floats(io.dtype, value, 0, rows * kv_width, v);
  thread_local Arena arena;
  arena.clear();
  const auto job = make_attention_job(parts, io, {q, k, v, out}, arena);
  std::atomic<int64_t> workers{1};
  auto body = [&](Team::Worker& worker) {
    workers.store(worker.width(), std::memory_order_relaxed);  // the same for all
    job->run(worker);
  };
  Team::run(threads, job->width(), body);
  job->commit();
  if (job->in_parts(workers)) job->merge_all(workers, out);
  write_floats(io.dtype, out, rows * width, output, 0);
}

}  // namespace doge
