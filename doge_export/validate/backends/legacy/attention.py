"""What the attentions of generations 2 and 3 share: projections, rotation, scores."""

import math
from typing import Any

import torch

from doge_export.core.config import DogeConfig

__all__ = ["EarlierAttention", "turned"]


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, heads, S, D], rotated by cos and sin [B, S, D]."""
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, None] + other * sin[:, None]


class EarlierAttention(torch.nn.Module):
    """softmax(q k^T / sqrt(D) + mask) v; `prepare_dynamic_mask` is the generation's own."""

    repeats_first = False  # whether dt is made of the values repeated for each query head

    def __init__(self, config: DogeConfig, index: int) -> None:
        super().__init__()
        self.settings, self.index = config, index
        hidden, bias, size = config.hidden_size, config.attention_bias, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = torch.nn.Linear(hidden, heads * size, bias=bias)
        self.k_proj = torch.nn.Linear(hidden, groups * size, bias=bias)
        self.v_proj = torch.nn.Linear(hidden, groups * size, bias=bias)
        self.A = torch.nn.Parameter(torch.zeros(heads))
        self.dt_proj = torch.nn.Linear((heads if self.repeats_first else groups) * size, heads, bias=bias)
        self.o_proj = torch.nn.Linear(heads * size, hidden, bias=bias)

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """dt [B, H, L] and the additive causal mask [B, 1, S, L] -> what is added to the scores."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Any, cache: Any) -> torch.Tensor:
        config = self.settings
        batch, length, _ = x.shape
        size, repeats = config.head_dim, config.num_attention_heads // config.num_key_value_heads

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(batch, length, -1, size).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        q, k = turned(q, *rotation), turned(k, *rotation)
        k, v = cache.update(k, v, self.index)
        k_heads, v_heads = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        weighed = v_heads if self.repeats_first else v
        dt = self.dt_proj(weighed.transpose(1, 2).reshape(batch, k.shape[2], -1))
        dt = torch.exp(self.A * torch.nn.functional.softplus(dt)).transpose(1, 2)
        added = self.prepare_dynamic_mask(dt_states=dt, attention_mask=mask)
        scores = q @ k_heads.transpose(2, 3) / math.sqrt(size) + added
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        result: torch.Tensor = self.o_proj((weights @ v_heads).transpose(1, 2).reshape(batch, length, -1))
        return result
