"""Dynamic mask attention: the projections around the DynamicMaskAttention operator."""

import torch

from doge_export.core.config import DogeConfig
from doge_export.model.norm import RMSNorm
from doge_export.model.operators.bounded_mask_attention import bounded_mask_attention
from doge_export.model.operators.dynamic_mask_attention import dynamic_mask_attention
from doge_export.model.projections import LayerCache, Projections

__all__ = ["Attention"]


class Attention(Projections):
    """hidden_states [batch, sequence, hidden] -> the same shape, and the layer's cache after it."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

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
        weights = (self.q_norm.weight, self.k_norm.weight, self.dt_proj.weight, self.dt_bias, self.A)
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
        return self.o_proj(output), past.after(key, value, dt)
