// Decoder layers one after the other.
#include <algorithm>

#include "layer.h"

namespace doge {

DecoderLayers::DecoderLayers(const LayerConfig& config, const std::vector<LayerWeights>& weights)
    : parts_(std::make_unique<Parts>()) {
  if (weights.empty()) throw Error("There are no layers.");
  for (const LayerWeights& each : weights) {
    parts_->layers.push_back(std::make_unique<LayerParts>(config, each));
    if (parts_->layers.back()->hidden != hidden_size()) throw Error("Two layers differ in hidden_size.");
  }
}
DecoderLayers::~DecoderLayers() = default;
size_t DecoderLayers::count() const { return parts_->layers.size(); }
int64_t DecoderLayers::hidden_size() const { return parts_->layers.front()->hidden; }

void DecoderLayers::run(const AttentionIO* io, const void* hidden, void* output, Threads& threads) const {
  const int64_t rows = io->batch * io->sequence;
  if (rows == 0) return;
  thread_local Arena arena;
  arena.clear();
  const size_t layers = count();
  // Few rows: one team goes through all layers. Many take long, and much memory: a team a layer, which all share.
  const size_t together = rows <= LayerJob::kFew ? layers : 1;
  void* between[2] = {nullptr, nullptr};
  for (size_t i = 0; i < std::min<size_t>(2, layers - 1) && together == 1; i++)
    between[i] = arena.take(rows * hidden_size());
  for (size_t first = 0; first < layers; first += together) {
    thread_local Arena own;
    own.clear();
    std::vector<LayerJob> jobs;
    jobs.reserve(together);
    size_t width = 1;
    for (size_t i = first; i < first + together; i++) {
      void* to = i + 1 == layers ? output : together == 1 ? between[i % 2] : arena.take(rows * hidden_size());
      jobs.emplace_back(*parts_->layers[i], io[i], hidden, to, own);
      jobs.back().first_mark = (i - first) * LayerJob::kMarks;
      width = std::max(width, jobs.back().width());
      hidden = to;
    }
    auto body = [&](Team::Worker& worker) {
      thread_local Ahead ahead;
      ahead.clear();
      if (rows <= LayerJob::kFew && worker.width() > 1) {
        for (size_t i = first; i < first + together; i++) LayerJob::announce(*parts_->layers[i], worker, &ahead);
        worker.ahead = &ahead;
      }
      for (LayerJob& job : jobs) job.run(worker);
    };
    Team::run(threads, width, body);
  }
}

}  // namespace doge
