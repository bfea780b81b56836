#include "layer_weights.h"

#include "expert_routing.h"

namespace doge::ort {

namespace {

const char* const kRoles[] = {
    "input_layernorm", "q_proj", "q_proj.scale", "q_proj.bias", "k_proj",
    "k_proj.scale", "k_proj.bias", "v_proj", "v_proj.scale", "v_proj.bias",
    "q_norm", "k_norm", "dt_proj", "dt_proj.bias", "A",
    "o_proj", "o_proj.scale", "o_proj.bias", "input_residual", "gate_proj",
    "gate_proj.scale", "gate_proj.bias", "up_proj", "up_proj.scale", "up_proj.bias",
    "down_proj", "down_proj.scale", "down_proj.bias", "router_gate", "post_attention_layernorm",
    "post_attention_residual", "down_embed", "down_embed.scale", "up_embed", "up_embed.scale",
};

int64_t length(const Node& node, const std::string& role) {
  const Tensor tensor = node.weight(role);
  if (tensor.shape.rank() != 1 || tensor.shape[0] < 1)
    throw Error(role + " has the shape " + tensor.shape.text() + ".");
  return tensor.shape[0];
}

}  // namespace

std::vector<std::string> layer_roles(const std::string& prefix) {
  std::vector<std::string> roles;
  for (const char* role : kRoles) roles.push_back(prefix + role);
  return roles;
}

LayerConfig layer_config(const Node& node) {
  LayerConfig config;
  config.attention = attention_config(node);
  config.epsilon = config.attention.epsilon;
  config.activation = activation_from_name(node.text("activation"));
  config.routing = routing_config(node, 0);
  return config;
}

// The sizes that no attribute tells are those of the norms and of the projections themselves.
LayerWeights read_layer(const Node& node, const std::string& prefix, LayerConfig* config) {
  AttentionConfig& attention = config->attention;
  LayerWeights weights;
  const int64_t hidden = length(node, prefix + "input_layernorm");
  attention.head_dim = checked_head_dim(length(node, prefix + "q_norm"));
  const int64_t q_size = attention.num_heads * attention.head_dim;
  const int64_t kv_heads = attention.num_kv_heads, kv_size = kv_heads * attention.head_dim;

  weights.input_layernorm = node.vector(prefix + "input_layernorm", {hidden});
  weights.post_attention_layernorm = node.vector(prefix + "post_attention_layernorm", {hidden});
  weights.input_residual = node.vector(prefix + "input_residual", {hidden});
  weights.post_attention_residual = node.vector(prefix + "post_attention_residual", {hidden});
  weights.q_proj = node.linear(prefix + "q_proj", q_size, hidden);
  weights.k_proj = node.linear(prefix + "k_proj", kv_size, hidden);
  weights.v_proj = node.linear(prefix + "v_proj", kv_size, hidden);
  weights.o_proj = node.linear(prefix + "o_proj", hidden, q_size);
  weights.attention.q_norm = node.vector(prefix + "q_norm", {attention.head_dim});
  weights.attention.k_norm = node.vector(prefix + "k_norm", {attention.head_dim});
  weights.attention.dt_weight = node.vector(prefix + "dt_proj", {kv_heads, kv_size});
  weights.attention.dt_bias = node.vector_or_empty(prefix + "dt_proj.bias", {kv_heads});
  if (weights.attention.dt_bias.empty()) weights.attention.dt_bias.assign(static_cast<size_t>(kv_heads), 0);
  weights.attention.A = node.vector(prefix + "A", {kv_heads});
  weights.gate_proj = node.linear(prefix + "gate_proj", 0, hidden);
  const int64_t intermediate = weights.gate_proj.weight.n;
  weights.up_proj = node.linear(prefix + "up_proj", intermediate, hidden);
  weights.down_proj = node.linear(prefix + "down_proj", hidden, intermediate);

  const int64_t keys = config->routing.num_keys;
  for (const char* role : {"router_gate", "down_embed", "up_embed"})
    if (node.has(prefix + role) != (keys > 0))
      throw Error(std::string("num_keys is ") + std::to_string(keys) + ", and " + prefix + role +
                  (keys > 0 ? " is missing." : " is there."));
  if (keys > 0) {
    weights.router_gate = node.matrix(prefix + "router_gate", 2 * keys, hidden);
    weights.down_embed = node.matrix(prefix + "down_embed", 0, hidden);
    const int64_t experts = weights.down_embed.n;
    if (experts < keys * keys)
      throw Error("down_embed has " + std::to_string(experts) + " experts, and the router chooses of " +
                  std::to_string(keys * keys) + ".");
    weights.up_embed = node.matrix(prefix + "up_embed", experts, hidden);
  }
  return weights;
}

}  // namespace doge::ort
