// Layers drawn at random, with the memory of their weights.
#pragma once

#include <memory>

#include "oracle.h"

namespace oracle {

struct OwnLayers {
  static constexpr int64_t hidden = 128, inner = 192, heads = 4, kv_heads = 2, d = 32;
  static constexpr size_t count = 3;
  doge::LayerConfig config;
  std::vector<doge::LayerWeights> weights;

  OwnLayers(Random& random, doge::Dtype dtype, int64_t block) : weights(count) {
    config.attention = {heads, kv_heads, d, 60, 0, 1 / std::sqrt(static_cast<float>(d)), 1e-6f};
    for (doge::LayerWeights& w : weights) {
      const auto draw = [&](int64_t n, int64_t k) { return matrix(random, dtype, n, k, block); };
      w.q_proj.weight = draw(heads * d, hidden);
      w.k_proj.weight = draw(kv_heads * d, hidden);
      w.v_proj.weight = draw(kv_heads * d, hidden);
      w.o_proj.weight = draw(hidden, heads * d);
      w.gate_proj.weight = draw(inner, hidden);
      w.up_proj.weight = draw(inner, hidden);
      w.down_proj.weight = draw(hidden, inner);
      w.input_layernorm = random.normal(hidden);
      w.post_attention_layernorm = random.normal(hidden);
      w.input_residual = random.normal(hidden);
      w.post_attention_residual = random.normal(hidden);
      w.attention = {random.normal(d), random.normal(d), random.normal(kv_heads * kv_heads * d, 0.02f),
                     random.normal(kv_heads), random.normal(kv_heads, 0.5f)};
    }
  }
  doge::Matrix matrix(Random& random, doge::Dtype dtype, int64_t n, int64_t k, int64_t block) {
    own_.push_back(std::make_unique<OwnMatrix>());
    own_.back()->draw(random, dtype, n, k, block);
    return own_.back()->matrix;
  }

 private:
  std::vector<std::unique_ptr<OwnMatrix>> own_;
};

}  // namespace oracle
