// A whole model for several tokens, in one team: between two tokens no thread leaves it.
#include <algorithm>
#include <exception>

#include "head.h"
#include "layer.h"

namespace doge {
namespace {

class Decode {
 public:
  Decode(const Matrix& table, const RotaryAngles& angles, const DecoderLayers& layers, const Head& head,
         const DecodeCall& call, Threads& threads)
      : table_(table), angles_(angles), layers_(layers), head_(head), call_(call), threads_(threads), io_(call.io),
        dtype_(io_.front().dtype), batch_(io_.front().batch), hidden_(layers.hidden_size()),
        bounded_(io_.front().bounded), ones_(static_cast<size_t>(batch_), 1),
        ids_(call.ids, call.ids + batch_ * io_.front().sequence),
        positions_(call.positions, call.positions + batch_ * io_.front().sequence),
        best_(static_cast<size_t>(batch_ * call.count)), logits_(best_.size()) {
    const size_t tokens = ids_.size(), half = static_cast<size_t>(angles.size());
    states_.resize(tokens * static_cast<size_t>(hidden_));  // enough for any element type
    made_.resize(states_.size());
    cos_.resize(tokens * half);
    sin_.resize(tokens * half);
    if (!bounded_) slots_.assign(io_.front().cache_position, io_.front().cache_position + batch_);
    for (AttentionIO& own : io_) {
      own.cos = cos_.data();
      own.sin = sin_.data();
      if (bounded_)
        own.positions = positions_.data();
      else
        own.cache_position = slots_.data();
    }
  }

  void run() {
    embed();
    if (io_.front().sequence > 1) {  // a prefill: a team a layer
      layers_.run(io_.data(), states_.data(), made_.data(), threads_);
      head_.top_tokens(dtype_, batch_, io_.front().sequence, made_.data(), call_.count, best_.data(), logits_.data(), threads_);
      advance();
      if (step_ == call_.steps) return;
      embed();
    }
    steps();
  }

 private:
  void embed() {
    const auto tokens = static_cast<int64_t>(ids_.size());
    token_embedding(table_, dtype_, tokens, ids_.data(), states_.data());
    angles_.run(dtype_, tokens, positions_.data(), cos_.data(), sin_.data(), call_.rope_length);
  }

  // Writes out what the step gave, and turns to the next one.
  void advance() {
    const int64_t length = io_.front().sequence, count = call_.count;
    for (int64_t row = 0; row < batch_; row++) {
      const int64_t *best = &best_[static_cast<size_t>(row * count)], to = (row * call_.steps + step_) * count;
      std::copy_n(best, count, call_.token_ids + to);
      std::copy_n(&logits_[static_cast<size_t>(row * count)], count, call_.token_logits + to);
      ids_[static_cast<size_t>(row)] = *best;
      positions_[static_cast<size_t>(row)] = next_position(positions_[static_cast<size_t>((row + 1) * length - 1)]);
      if (!bounded_) slots_[static_cast<size_t>(row)] += length;
    }
    ids_.resize(static_cast<size_t>(batch_));
    positions_.resize(static_cast<size_t>(batch_));
    for (AttentionIO& own : io_) {  // from here on the cache is the one that was written
      own.sequence = 1;
      own.past_key = own.present_key;
      own.past_value = own.present_value;
      own.past_dt = own.present_dt;
      if (!bounded_) continue;
      own.past_position = own.present_position;
      own.mask = ones_.data();
    }
    step_++;
  }

  // The jobs of a step of one token a row, which is embedded.
  void plan(std::vector<LayerJob>* jobs) {
    const auto& parts = layers_.parts().layers;
    arena_.clear();
    jobs->clear();
    const void* from = states_.data();
    for (size_t layer = 0; layer < parts.size(); layer++) {
      void* to = layer + 1 == parts.size() ? made_.data() : arena_.take(batch_ * hidden_);
      jobs->emplace_back(*parts[layer], io_[layer], from, to, arena_);
      jobs->back().first_mark = layer * LayerJob::kMarks;
      from = to;
    }
  }

  void steps() {
    std::vector<LayerJob> jobs;
    jobs.reserve(io_.size());
    plan(&jobs);
    TopTokensJob top(head_.parts(), dtype_, batch_, 1, made_.data(), call_.count, best_.data(), logits_.data(),
                     threads_);
    size_t width = top.width();
    for (const LayerJob& job : jobs) width = std::max(width, job.width());
    const int64_t first = step_;
    std::exception_ptr failure;
    auto body = [&](Team::Worker& worker) {
      thread_local Ahead ahead;
      ahead.clear();
      if (batch_ <= LayerJob::kFew && worker.width() > 1) {
        for (const auto& parts : layers_.parts().layers) LayerJob::announce(*parts, worker, &ahead);
        top.announce(worker, &ahead);
        worker.ahead = &ahead;
      }
      for (int64_t stage = 0; stage < call_.steps - first; stage++) {
        ahead.again();
        stage = worker.enter(stage, [&] {
          if (step_ - first == stage) return;  // the first one is planned
          try {
            advance();
            embed();
            plan(&jobs);
          } catch (...) {  // the others wait
            failure = std::current_exception();
          }
        });
        if (failure) return;
        for (LayerJob& job : jobs) job.run(worker);
        ahead.reached(jobs.size() * LayerJob::kMarks);
        top.run(worker);
      }
    };
    Team::run(threads_, width, body);
    if (failure) std::rethrow_exception(failure);
    advance();
  }

  const Matrix& table_;
  const RotaryAngles& angles_;
  const DecoderLayers& layers_;
  const Head& head_;
  const DecodeCall& call_;
  Threads& threads_;
  std::vector<AttentionIO> io_;
  Dtype dtype_;
  int64_t batch_, hidden_, step_ = 0;
  bool bounded_;
  std::vector<int64_t> ones_, slots_, ids_, positions_, best_;
  Vector logits_, states_, made_, cos_, sin_;
  Arena arena_;
};

}  // namespace

void decode_tokens(const Matrix& table, const RotaryAngles& angles, const DecoderLayers& layers, const Head& head,
                   const DecodeCall& call, Threads& threads) {
  if (call.io.size() != layers.count()) throw Error("There is not one cache a layer.");
  if (call.io.front().batch > 0 && call.steps > 0) Decode(table, angles, layers, head, call, threads).run();
}

}  // namespace doge
