// A whole model for several tokens, in one team: between two tokens no thread leaves it.
#include <algorithm>
#include <exception>
#include <optional>

#include "half.h"
#include "head.h"
#include "layer.h"
#include "sampling.h"

namespace doge {
namespace {

// So many tokens of rows of any lengths are taken in one team; more are a prefill, a team a layer, which shares memory.
constexpr int64_t kTogether = 64;

class Decode {
 public:
  Decode(const Matrix& table, const RotaryAngles& angles, const DecoderLayers& layers, const Head& head,
         const DecodeCall& call, Threads& threads)
      : table_(table), angles_(angles), layers_(layers), head_(head), call_(call), threads_(threads), io_(call.io),
        dtype_(io_.front().dtype), batch_(io_.front().batch), hidden_(layers.hidden_size()),
        bounded_(io_.front().bounded), ragged_(io_.front().rows != nullptr), ones_(static_cast<size_t>(batch_), 1),
        ids_(call.ids, call.ids + io_.front().tokens()), positions_(call.positions, call.positions + ids_.size()),
        drawn_(call.draws, head.vocab_size()) {
    const size_t tokens = ids_.size(), half = static_cast<size_t>(angles.size());
    states_.resize(tokens * static_cast<size_t>(hidden_));  // enough for any element type
    made_.resize(states_.size());
    cos_.resize(tokens * half);
    sin_.resize(tokens * half);
    if (!bounded_) places_.assign(io_.front().cache_position, io_.front().cache_position + batch_);
    for (int64_t b = 0; b < batch_; b++)
      rows_.push_back(ragged_ ? io_.front().rows[b] : CallRow{b * io_.front().sequence, io_.front().sequence, b});
    if (call.wanted) {
      wanted_.assign(call.wanted, call.wanted + call.wanted_count);
    } else {
      for (const CallRow& row : rows_) wanted_.push_back(row.first + row.count - 1);
    }
    best_.resize(wanted_.size() * static_cast<size_t>(call.count));
    logits_.resize(best_.size());
    next_.resize(wanted_.size());
    for (AttentionIO& own : io_) {
      own.cos = cos_.data();
      own.sin = sin_.data();
      if (ragged_) own.rows = rows_.data();
      if (bounded_)
        own.positions = positions_.data();
      else
        own.cache_position = places_.data();
    }
  }

  void run() {
    embed();
    if (!together()) {  // a prefill: a team a layer
      layers_.run(io_.data(), states_.data(), made_.data(), threads_);
      if (call_.draws.empty()) {
        head_.top_tokens(dtype_, wanted_count(), 1, made_.data(), call_.count, best_.data(), logits_.data(), threads_, wanted_.data());
      } else {
        DrawJob draw(head_.parts(), dtype_, drawn_, made_.data(), wanted_.data(), next_.data(), best_.data(), logits_.data(), threads_);
        auto body = [&](Team::Worker& worker) { draw.run(worker); };
        Team::run(threads_, draw.width(), body);
      }
      advance();
      if (step_ == call_.steps) return;
      embed();
    }
    steps();
  }

 private:
  int64_t tokens() const { return static_cast<int64_t>(ids_.size()); }
  int64_t wanted_count() const { return static_cast<int64_t>(wanted_.size()); }
  bool together() const { return tokens() == batch_ || (ragged_ && !bounded_ && tokens() <= kTogether); }

  void embed() {
    token_embedding(table_, dtype_, tokens(), ids_.data(), states_.data());
    for (size_t i = 0; i < wanted_.size(); i++) next_[i] = next_position(positions_[static_cast<size_t>(wanted_[i])]);
    if (!ragged_) {
      angles_.run(dtype_, tokens(), positions_.data(), cos_.data(), sin_.data(), call_.rope_length);
      return;
    }
    for (int64_t b = 0; b < batch_; b++) {  // each row turns as it does alone
      const CallRow& row = rows_[static_cast<size_t>(b)];
      const size_t at = static_cast<size_t>(row.first * angles_.size()) * bytes_of(dtype_);
      angles_.run(dtype_, row.count, &positions_[static_cast<size_t>(row.first)], reinterpret_cast<char*>(cos_.data()) + at,
                  reinterpret_cast<char*>(sin_.data()) + at, call_.rope_lengths ? call_.rope_lengths[b] : 0);
    }
  }

  // Writes out what the step gave, and turns to the next one.
  void advance() {
    const int64_t count = call_.count, results = wanted_count();
    for (int64_t i = 0; i < results; i++) {
      const int64_t to = (i * call_.steps + step_) * count;
      std::copy_n(&best_[static_cast<size_t>(i * count)], count, call_.token_ids + to);
      std::copy_n(&logits_[static_cast<size_t>(i * count)], count, call_.token_logits + to);
    }
    if (++step_ == call_.steps) return;
    for (int64_t b = 0; b < batch_; b++) {
      const auto row = static_cast<size_t>(b);
      CallRow& own = rows_[row];
      ids_[row] = best_[row * static_cast<size_t>(count)];
      if (!call_.draws.empty()) drawn_.add(b, ids_[row]);
      positions_[row] = next_position(positions_[static_cast<size_t>(own.first + own.count - 1)]);
      if (!bounded_) places_[row] += own.count;
      own = {b, 1, own.slot};
      wanted_[row] = b;
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
      if (!ragged_) own.mask = ones_.data();
    }
  }

  // The jobs of a step whose tokens are embedded.
  void plan(std::vector<LayerJob>* jobs) {
    const auto& parts = layers_.parts().layers;
    arena_.clear();
    jobs->clear();
    const void* from = states_.data();
    for (size_t layer = 0; layer < parts.size(); layer++) {
      void* to = layer + 1 == parts.size() ? made_.data() : arena_.take(tokens() * hidden_);
      jobs->emplace_back(*parts[layer], io_[layer], from, to, arena_);
      jobs->back().first_mark = layer * LayerJob::kMarks;
      from = to;
    }
  }

  void steps() {
    std::vector<LayerJob> jobs;
    jobs.reserve(io_.size());
    plan(&jobs);
    std::optional<TopTokensJob> top;
    std::optional<DrawJob> draw;
    if (call_.draws.empty())
      top.emplace(head_.parts(), dtype_, wanted_count(), 1, made_.data(), call_.count, best_.data(), logits_.data(), threads_,
                  wanted_.data());
    else
      draw.emplace(head_.parts(), dtype_, drawn_, made_.data(), wanted_.data(), next_.data(), best_.data(), logits_.data(), threads_);
    size_t width = draw ? draw->width() : top->width();
    for (const LayerJob& job : jobs) width = std::max(width, job.width());
    const int64_t first = step_;
    std::exception_ptr failure;
    auto body = [&](Team::Worker& worker) {
      thread_local PrefetchQueue prefetch;
      prefetch.clear();
      if (batch_ <= LayerJob::kFew && worker.width() > 1) {
        for (const auto& parts : layers_.parts().layers) LayerJob::announce(*parts, worker, &prefetch);
        draw ? draw->announce(worker, &prefetch) : top->announce(worker, &prefetch);
        worker.prefetch = &prefetch;
      }
      for (int64_t stage = 0; stage < call_.steps - first; stage++) {
        prefetch.again();
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
        prefetch.reached(jobs.size() * LayerJob::kMarks);
        draw ? draw->run(worker) : top->run(worker);
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
  bool bounded_, ragged_;
  std::vector<CallRow> rows_;
  // wanted_: the tokens behind which one is looked for; next_: its position.
  std::vector<int64_t> ones_, places_, ids_, positions_, wanted_, next_, best_;
  DrawnRows drawn_;
  Vector logits_, states_, made_, cos_, sin_;
  Arena arena_;
};

}  // namespace

void decode_tokens(const Matrix& table, const RotaryAngles& angles, const DecoderLayers& layers, const Head& head,
                   const DecodeCall& call, Threads& threads) {
  if (call.io.size() != layers.count()) throw Error("There is not one cache a layer.");
  const auto draws = static_cast<int64_t>(call.draws.size());
  if (draws > 0 && (draws != (call.wanted ? call.wanted_count : call.io.front().batch) || call.count != 1))
    throw Error("There is not one draw a row or wanted token, of one token.");
  if (call.io.front().batch > 0 && call.steps > 0) Decode(table, angles, layers, head, call, threads).run();
}

}  // namespace doge
