// CDMoE: which experts serve a token, and what they add. Nothing of [tokens, experts, hidden] is ever made.
#pragma once

#include "doge_kernels.h"
#include "isa.h"

namespace doge {

// One token's experts from the logits of its two halves; indices and weights [num_experts_per_tok].
void route(const RoutingConfig& config, const float* x, const float* y, int64_t* indices, float* weights);
void check(const RoutingConfig& config);  // throws Error

// row . x and y += a * row[first, first + n), for one row of a table of any dtype; `first` is even.
float row_dot(const Matrix& table, int64_t row, const float* x);
void row_axpy(const Matrix& table, int64_t row, float a, int64_t first, int64_t n, float* y);

// Elements [first, first + n) of a row are read soon.
void row_prefetch(const Matrix& table, int64_t row, int64_t first, int64_t n);

float activate(Activation activation, float x);
// gate = activation(gate) * up
void activate_mul(Activation activation, int64_t n, float* gate, const float* up);

}  // namespace doge
