"""What every generation's attention has: its projections, and the cache of a layer."""

from typing import NamedTuple

import torch

from doge_export.core.config import DogeConfig

__all__ = ["LayerCache", "Projections"]


class LayerCache(NamedTuple):
    """One layer's cache: key, value [batch, kv_heads, length, head_dim]; dt and position (int64) [batch,
    kv_heads, length] where the kind of cache keeps them."""

    key: torch.Tensor
    value: torch.Tensor
    dt: torch.Tensor | None = None
    position: torch.Tensor | None = None

    def after(self, key: torch.Tensor, value: torch.Tensor, dt: torch.Tensor) -> "LayerCache":
        """The cache after a call that gave these; dt is kept where it was before."""
        return LayerCache(key, value, None if self.dt is None else dt)


class Projections(torch.nn.Module):
    """q_proj, k_proj, v_proj, A, dt_proj and o_proj; dt_proj reads `dt_width` numbers, the values of all kv
    heads unless another width is given."""

    def __init__(self, config: DogeConfig, dt_width: int | None = None) -> None:
        super().__init__()
        self.config = config
        hidden, bias, head_dim = config.hidden_size, config.attention_bias, config.head_dim
        width, kv_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        self.q_proj = torch.nn.Linear(hidden, width, bias=bias)
        self.k_proj = torch.nn.Linear(hidden, kv_width, bias=bias)
        self.v_proj = torch.nn.Linear(hidden, kv_width, bias=bias)
        self.A = torch.nn.Parameter(torch.zeros(config.dt_heads))
        self.dt_proj = torch.nn.Linear(dt_width or kv_width, config.dt_heads, bias=bias)
        self.o_proj = torch.nn.Linear(width, hidden, bias=bias)

    @property
    def dt_bias(self) -> torch.Tensor:
        """dt_proj's bias, zeros where it has none."""
        return self.dt_proj.bias if self.config.attention_bias else torch.zeros_like(self.A)
