// A decoder layer: its weights as the loops want them, and one call of it as phases of a team.
#pragma once

#include <memory>

#include "activation_rows.h"
#include "attention.h"

namespace doge {

struct PackedLinear {
  Packed weight;
  Vector bias;
  explicit PackedLinear(const Linear& linear) : weight(linear.weight), bias(linear.bias) {
    if (!bias.empty() && bias.size() != static_cast<size_t>(weight.n()))
      throw Error("A bias has another length than its matrix has outputs.");
  }
};

struct LayerParts {
  LayerConfig config;
  AttentionParts attention;
  Vector input_norm, post_norm, input_residual, post_residual;
  PackedLinear q, k, v, o, gate, up, down;
  Packed router;
  Matrix down_embed, up_embed;
  int64_t hidden, inner;

  LayerParts(const LayerConfig& config, const LayerWeights& weights);  // throws Error
};

struct DecoderLayers::Parts {
  std::vector<std::unique_ptr<LayerParts>> layers;
};

class LayerJob {
 public:
  static constexpr int64_t kFew = 8;  // so few rows are prepared by every worker for itself

  // `hidden` need not be there before the first worker runs. Memory is `arena`'s, and lasts as long.
  LayerJob(const LayerParts& parts, const AttentionIO& io, const void* hidden, void* output, Arena& arena);
  void run(Team::Worker& worker);
  // How many threads can be of use.
  size_t width() const;
  // What `worker` reads in one call of `run` on few rows, a mark a phase.
  static constexpr size_t kMarks = 4;
  static void announce(const LayerParts& parts, const Team::Worker& worker, PrefetchQueue* queue);
  size_t first_mark = 0;  // of this layer, where several follow each other

 private:
  // All rows, normalised (where there is a norm) and quantized; a few rows by every worker, in memory of its own.
  ActivationRows prepare(Team::Worker& worker, const ActivationRows& planned, const float* from, const float* norm,
                         float* normed);
  // tile(panel, first, count) for every tile of rows of every panel; `mark` counts these phases.
  template <class F>
  void tiles(Team::Worker& worker, size_t mark, int64_t panels, F&& tile) const;
  void write(const PackedLinear& linear, const ActivationRows& x, int64_t panel, int64_t first, int64_t count,
             float* to) const;
  void add(const PackedLinear& linear, const ActivationRows& x, int64_t panel, int64_t first, int64_t count,
           const float* before, const Vector& residual, float* to, bool experts) const;
  void gate_up(const ActivationRows& x, int64_t panel, int64_t first, int64_t count) const;
  void router_logits(const ActivationRows& x, int64_t panel, int64_t first, int64_t count) const;
  // Chooses the experts of tokens [first, first + count) from the logits, and computes what they give.
  void mix(const ActivationRows& x, int64_t first, int64_t count) const;
  // Whether one worker takes router and experts as a whole, while the others are at the MLP.
  bool mixes_early(const Team::Worker& worker) const;

  const LayerParts& p_;
  int64_t rows_, width_, kv_width_, keys_ = 0, chosen_ = 0;
  Dtype dtype_;
  const void* in_;
  void* out_;
  const float* hidden_;
  float *wide_, *normed_, *q_, *k_, *v_, *attended_, *middle_, *inner_, *logits_, *result_, *mixing_;
  int64_t* indices_;
  ActivationRows input_, attention_, post_, down_;
  std::unique_ptr<AttentionJob> job_;
};

}  // namespace doge
