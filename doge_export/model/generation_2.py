"""Generation 2, December 2024: masked by the sign of A, and experts found by queries and keys."""

from collections.abc import Callable
from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.model.feed_forward import MLP
from doge_export.model.head_attention import HeadAttention
from doge_export.model.operators.expert_routing import expert_routing
from doge_export.model.operators.sign_mask_attention import sign_mask_attention

__all__ = ["Attention", "CDMoE", "Retrieval"]


class Attention(HeadAttention):
    """A head sees the keys whose dt is at least 1; dt is made of values repeated for each query head."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(config, dt_width=config.num_attention_heads * config.head_dim)

    def operator(self, inputs: tuple[Any, ...], cache: tuple[Any, ...], heads: tuple[int, int]) -> Any:
        return sign_mask_attention(*inputs, *cache, *heads, self.config.head_dim**-0.5)


class Retrieval(torch.nn.Module):
    """Adds to what the next class in line computes, for each of `expert_heads` retrievals,
    `num_experts_per_tok` one-row experts. A retrieval scores each half of the product keys by its query;
    tokens are never mixed."""

    activation: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, config: DogeConfig, per_token: bool) -> None:
        super().__init__(config)
        self.config = config
        heads, size = config.expert_heads, config.expert_retrieval_size
        self.queries = torch.nn.Linear(config.hidden_size, heads * size, bias=False)
        self.keys = torch.nn.Parameter(torch.zeros(heads, config.num_keys, 2, size // 2))
        self.down_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        config = self.config
        batch, length, hidden = hidden_states.shape
        heads, half = config.expert_heads, config.expert_retrieval_size // 2
        # The halves come first in the queries, then the heads: one product for each pair of them.
        queries = self.queries(hidden_states).reshape(-1, 2, heads, half).permute(2, 1, 0, 3)
        logits = queries @ self.keys.permute(0, 2, 3, 1)  # [heads, 2, tokens, num_keys]
        logits = logits.permute(2, 0, 1, 3).reshape(batch, length * heads, 2 * config.num_keys)
        indices, weights = expert_routing(logits, config.num_keys, config.num_experts_per_tok, 1, 0)
        indices = indices.reshape(-1, heads * config.num_experts_per_tok)
        tokens = hidden_states.reshape(-1, hidden, 1)
        activations = (self.down_embed(indices) @ tokens).squeeze(-1)
        mixing = self.mixing(activations, weights.reshape(indices.shape))
        experts = (mixing.unsqueeze(1) @ self.up_embed(indices)).reshape(hidden_states.shape)
        mixed: torch.Tensor = super().forward(hidden_states) + experts
        return mixed

    def mixing(self, activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What each expert's row is multiplied with: [tokens, experts]."""
        return self.activation(activations) * weights


class CDMoE(Retrieval, MLP):
    """The MLP and its experts."""
