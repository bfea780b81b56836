"""Generation 1, November 2024, inner function attention: values that are looked up, a mask by places, and
experts beside an MLP without a gate."""

import torch

from doge_export.core.config import DogeConfig
from doge_export.model.feed_forward import ACTIVATION_FUNCTIONS
from doge_export.model.generation_2 import Retrieval
from doge_export.model.operators.place_mask_attention import place_mask_attention
from doge_export.model.projections import LayerCache

__all__ = ["Attention", "CDMoE"]


class Attention(torch.nn.Module):
    """hidden_states [batch, sequence, hidden] -> the same shape, and the layer's cache after it. A token's
    value is its hidden state times the sum of the rows of `v_embed` that its queries find, number by
    number."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        self.config = config
        hidden, bias = config.hidden_size, config.attention_bias
        heads, size = config.num_inner_value_heads, config.inner_values_retrieval_size
        self.q_proj = torch.nn.Linear(hidden, hidden, bias=bias)
        self.k_proj = torch.nn.Linear(hidden, hidden, bias=bias)
        self.dynamic_mask = torch.nn.Parameter(
            torch.ones(config.num_attention_heads, config.max_position_embeddings)
        )
        self.v_queries = torch.nn.Linear(hidden, heads * size, bias=bias)
        self.v_keys = torch.nn.Parameter(torch.zeros(heads, size, config.num_inner_values))
        self.v_embed = torch.nn.Embedding(config.num_inner_values, hidden)
        self.o_proj = torch.nn.Linear(hidden, hidden, bias=bias)

    def values(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Look up the values [batch, sequence, hidden] of hidden states of that shape."""
        batch, length, _ = hidden_states.shape
        queries = self.v_queries(hidden_states).reshape(batch, length, len(self.v_keys), -1).transpose(1, 2)
        indices = torch.topk(queries @ self.v_keys, self.config.num_value_per_head).indices
        values: torch.Tensor = hidden_states * self.v_embed(indices).sum(-2).sum(1)
        return values

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        past: LayerCache,
        cache_position: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, LayerCache]:
        config = self.config
        output, key, value, dt = place_mask_attention(
            *(self.q_proj(hidden_states), self.k_proj(hidden_states), self.values(hidden_states)),
            *(past.key, past.value, attention_mask, cos, sin, self.dynamic_mask, past.dt, cache_position),
            *(config.num_attention_heads, config.num_key_value_heads, config.head_dim**-0.5),
        )
        return self.o_proj(output), past.after(key, value, dt)


class Shared(torch.nn.Module):
    """down(act(up(x))): what all tokens share."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = torch.nn.Linear(hidden, inner, bias=bias)
        self.down_proj = torch.nn.Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.activation(self.up_proj(hidden_states)))
        return output


class CDMoE(Retrieval, Shared):
    """The shared part and its experts, whose weight counts inside the activation."""

    def mixing(self, activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.activation(activations * weights)
