"""What the attention modules of the generations before transformers' share: no norms, dt for each query
head."""

from typing import Any

import torch

from doge_export.model.projections import LayerCache, Projections

__all__ = ["HeadAttention"]


class HeadAttention(Projections):
    """hidden_states [batch, sequence, hidden] -> the same shape, and the layer's cache after it.

    A generation's own class gives the operator, and what that takes beside what all do.
    """

    def operator(self, inputs: tuple[Any, ...], cache: tuple[Any, ...], heads: tuple[int, int]) -> Any:
        """The generation's operator on the inputs that all have, those of a static cache, and the heads."""
        raise NotImplementedError

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
        inputs = (
            *(self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)),
            *(past.key, past.value, attention_mask, cos, sin),
            *(self.dt_proj.weight, self.dt_bias, self.A),
        )
        heads = (config.num_attention_heads, config.num_key_value_heads)
        output, key, value, dt = self.operator(inputs, (past.dt, cache_position), heads)
        return self.o_proj(output), past.after(key, value, dt)
