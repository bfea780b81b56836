"""Dynamic mask attention: the projections around the DynamicMaskAttention operator."""

from typing import NamedTuple

import torch

from doge_export.config import DogeConfig
from doge_export.model.norm import RMSNorm
from doge_export.ops.bounded_mask_attention import bounded_mask_attention
from doge_export.ops.dynamic_mask_attention import dynamic_mask_attention

__all__ = ["Attention", "LayerCache"]


class LayerCache(NamedTuple):
    """One layer's cache: key, value [batch, kv_heads, length, head_dim]; dt and position (int64) [batch,
    kv_heads, length] where the kind of cache keeps them."""

    key: torch.Tensor
    value: torch.Tensor
    dt: torch.Tensor | None = None
    position: torch.Tensor | None = None


class Attention(torch.nn.Module):
    """hidden_states [batch, sequence, hidden] -> the same shape, and the layer's cache after it."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        self.config = config
        hidden, bias, head_dim = config.hidden_size, config.attention_bias, config.head_dim
        width, kv_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        self.q_proj = torch.nn.Linear(hidden, width, bias=bias)
        self.k_proj = torch.nn.Linear(hidden, kv_width, bias=bias)
        self.v_proj = torch.nn.Linear(hidden, kv_width, bias=bias)
        self.A = torch.nn.Parameter(torch.zeros(config.num_key_value_heads))
        self.dt_proj = torch.nn.Linear(kv_width, config.num_key_value_heads, bias=bias)
        self.o_proj = torch.nn.Linear(width, hidden, bias=bias)
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)

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
        projected = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        dt_bias = self.dt_proj.bias if config.attention_bias else torch.zeros_like(self.A)
        weights = (self.q_norm.weight, self.k_norm.weight, self.dt_proj.weight, dt_bias, self.A)
        shape = (config.num_attention_heads, config.num_key_value_heads, config.keep_window_size)
        scale, epsilon = config.head_dim**-0.5, config.rms_norm_eps
        if past.position is not None:
            assert past.dt is not None and position_ids is not None
            output, *present = bounded_mask_attention(
                *projected,
                *(past.key, past.value, past.dt, past.position, attention_mask, position_ids, cos, sin),
                *weights,
                *shape,
                scale,
                epsilon,
            )
            return self.o_proj(output), LayerCache(*present)
        output, key, value, dt = dynamic_mask_attention(
            *projected,
            *(past.key, past.value, attention_mask, cos, sin),
            *weights,
            past.dt,
            cache_position,
            *shape,
            config.sliding_window or 0,
            scale,
            epsilon,
        )
        return self.o_proj(output), LayerCache(key, value, None if past.dt is None else dt)
