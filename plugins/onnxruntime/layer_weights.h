// The weights of a decoder layer, and of the rotary embedding, among the inputs of a node.
#pragma once

#include "attention_inputs.h"

namespace doge::ort {

// The roles that they have, each after `prefix`.
std::vector<std::string> layer_roles(const std::string& prefix);

// The attributes that all layers of a node share: those of attention, routing and activation; no head_dim yet.
LayerConfig layer_config(const Node& node);

// The weights with the roles of layer_roles(prefix); the head_dim that they have goes into `config`.
LayerWeights read_layer(const Node& node, const std::string& prefix, LayerConfig* config);

// The rotary embedding's: attributes limit, factor, offset, theta, power and scaling; inv_freq, long_inv_freq and
// exponents among the inputs.
RotaryAngles read_rotary(const Node& node);

}  // namespace doge::ort
