"""The two kinds of feed-forward layer: the gated MLP, and CDMoE, which adds product-key experts to it."""

from collections.abc import Callable

import torch
from torch.nn.functional import gelu, silu

from doge_export.core.config import DogeConfig
from doge_export.model.operators.expert_routing import expert_routing

__all__ = ["MLP", "CDMoE"]

#: `hidden_act` -> the function; the same names as doge_export.core.config.ACTIVATIONS.
ACTIVATION_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) * torch.relu(x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class MLP(torch.nn.Module):
    """down(act(gate(x)) * up(x)) on [batch, sequence, hidden]."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = torch.nn.Linear(hidden, inner, bias=bias)
        self.up_proj = torch.nn.Linear(hidden, inner, bias=bias)
        self.down_proj = torch.nn.Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        output: torch.Tensor = self.down_proj(gated)
        return output


class CDMoE(MLP):
    """The MLP plus, per token, `num_experts_per_tok` one-row experts act(x . down) * weight * up.

    `per_token` routes each token by its own logits; without it the reference's view mixes tokens.
    """

    def __init__(self, config: DogeConfig, per_token: bool) -> None:
        super().__init__(config)
        self.config, self.per_token = config, per_token
        self.router_gate = torch.nn.Linear(config.hidden_size, 2 * config.num_keys, bias=False)
        self.down_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)

    def route(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's experts and what they weigh, [tokens, num_experts_per_tok], by its router's logits."""
        config = self.config
        routed: tuple[torch.Tensor, torch.Tensor] = expert_routing(
            router_logits,
            config.num_keys,
            config.num_experts_per_tok,
            int(self.per_token),
            int(config.norm_topk_prob),
        )
        return routed

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        indices, weights = self.route(self.router_gate(hidden_states))
        tokens = hidden_states.reshape(-1, self.config.hidden_size, 1)
        activations = (self.down_embed(indices) @ tokens).squeeze(-1)
        mixing = self.activation(activations) * weights
        experts = (mixing.unsqueeze(1) @ self.up_embed(indices)).reshape(hidden_states.shape)
        mixed: torch.Tensor = super().forward(hidden_states) + experts
        return mixed
