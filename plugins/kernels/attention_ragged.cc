#include "attention_ragged.h"

#include <algorithm>
#include <vector>

namespace doge {
namespace {

class RaggedAttention : public AttentionJob {
 public:
  RaggedAttention(const AttentionParts& parts, const AttentionIO& io, const AttentionRows& rows, Arena& arena)
      : output_(rows.output) {
    std::vector<int64_t> order;
    for (int64_t b = 0; b < io.batch; b++) order.push_back(b);
    const auto kind = [&](int64_t b) { return 2 * io.rows[b].count + !fits(parts.config, io, io.rows[b]); };
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return kind(x) < kind(y); });
    const auto groups = [&](auto&& group) {
      for (size_t begin = 0, end; begin < order.size(); begin = end) {
        for (end = begin + 1; end < order.size() && kind(order[end]) == kind(order[begin]);) end++;
        group(&order[begin], static_cast<int64_t>(end - begin));
      }
    };
    size_t count = 0;
    groups([&](const int64_t*, int64_t) { count++; });
    io_.reserve(count);  // jobs keep their addresses
    groups([&](const int64_t* members, int64_t size) {
      io_.push_back(io);
      AttentionIO& own = io_.back();
      own.batch = size;
      own.sequence = io.rows[members[0]].count;
      auto* own_rows = reinterpret_cast<CallRow*>(arena.take(static_cast<int64_t>(sizeof(CallRow) / 4) * size));
      auto* places = reinterpret_cast<int64_t*>(arena.take(2 * size));
      for (int64_t i = 0; i < size; i++) {
        own_rows[i] = io.rows[members[i]];
        if (!io.bounded) places[i] = io.cache_position[members[i]];
      }
      own.rows = own_rows;
      if (!io.bounded) own.cache_position = places;
      jobs_.push_back(make_uniform_attention(parts, own, rows, arena));
    });
  }

  void run(Team::Worker& worker) const override {
    for (const auto& job : jobs_) {
      job->run(worker);
      if (job->in_parts(worker.width()))
        worker.phase(1, [&](int64_t) { job->merge_all(worker.width(), output_); });
    }
  }
  void commit() const override {
    for (const auto& job : jobs_) job->commit();
  }
  size_t width() const override {
    size_t most = 0;
    for (const auto& job : jobs_) most = std::max(most, job->width());
    return most;
  }

 private:
  // Whether a row's new keys find empty places: those of a bounded cache are written where they are then.
  static bool fits(const AttentionConfig& config, const AttentionIO& io, const CallRow& row) {
    if (!io.bounded || row.count == 1) return true;
    return used_slots(io.past_position + row.slot * config.num_kv_heads * io.past, io.past) + row.count <= io.past;
  }

  float* output_;
  std::vector<AttentionIO> io_;
  std::vector<std::unique_ptr<AttentionJob>> jobs_;
};

}  // namespace

std::unique_ptr<AttentionJob> make_ragged_attention(const AttentionParts& parts, const AttentionIO& io,
                                                    const AttentionRows& rows, Arena& arena) {
  return std::make_unique<RaggedAttention>(parts, io, rows, arena);
}

}  // namespace doge
