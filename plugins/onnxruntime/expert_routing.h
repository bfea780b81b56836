#pragma once

#include "node.h"

namespace doge::ort {

// Attributes num_keys (at least `fewest_keys`), num_experts_per_tok, per_token and norm_topk_prob.
RoutingConfig routing_config(const Node& node, int64_t fewest_keys);

}  // namespace doge::ort
