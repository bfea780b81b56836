// Decoder layers one after the other, a team each; decode.cc takes those of a step in one.
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
  const int64_t rows = io->batch ? io->tokens() : 0;
  if (rows == 0) return;
  const size_t layers = count();
  thread_local Arena arena, own;  // what lies between layers, and what is of one layer: all of them share it
  arena.clear();
  void* between[2] = {nullptr, nullptr};
  for (size_t i = 0; i < std::min<size_t>(2, layers - 1); i++) between[i] = arena.take(rows * hidden_size());
  for (size_t i = 0; i < layers; i++) {
    own.clear();
    void* to = i + 1 == layers ? output : between[i % 2];
    LayerJob job(*parts_->layers[i], io[i], hidden, to, own);
    auto body = [&](Team::Worker& worker) {
      thread_local PrefetchQueue prefetch;
      prefetch.clear();
      if (rows <= LayerJob::kFew && worker.width() > 1) {
        LayerJob::announce(*parts_->layers[i], worker, &prefetch);
        worker.prefetch = &prefetch;
      }
      job.run(worker);
    };
    Team::run(threads, job.width(), body);
    hidden = to;
  }
}

}  // namespace doge
