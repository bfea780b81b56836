"""Generation 1 (LoserCheems/WonderfulMatrices, 9af5c82): inner function attention."""

import math
from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.validate.backends.legacy import generation_2
from doge_export.validate.backends.legacy.attention import turned

__all__ = ["Attention", "Experts"]


class Attention(torch.nn.Module):
    """v = x * sum of the rows that v_queries(x) . v_keys rank highest; only q is rotated; where dynamic_mask,
    by head and place, times the padding mask is 0, finfo.min is added. It ends with the places, and so does
    the original; here a key beyond them is not masked."""

    def __init__(self, config: DogeConfig, index: int) -> None:
        super().__init__()
        self.settings, self.index = config, index
        hidden, bias = config.hidden_size, config.attention_bias
        heads, size = config.num_inner_value_heads, config.inner_values_retrieval_size
        self.q_proj = torch.nn.Linear(hidden, hidden, bias=bias)
        self.k_proj = torch.nn.Linear(hidden, hidden, bias=bias)
        self.o_proj = torch.nn.Linear(hidden, hidden, bias=bias)
        positions = config.max_position_embeddings
        self.dynamic_mask = torch.nn.Parameter(torch.ones(config.num_attention_heads, positions))
        self.v_queries = torch.nn.Linear(hidden, heads * size, bias=bias)
        self.v_keys = torch.nn.Parameter(torch.zeros(heads, size, config.num_inner_values))
        self.v_embed = torch.nn.Embedding(config.num_inner_values, hidden)

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """dt_states: dynamic_mask of the keys, [B, H, L]."""
        lowest = torch.finfo(attention_mask.dtype).min
        return attention_mask.masked_fill(dt_states[:, :, None, :] == 0, lowest)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Any, cache: Any) -> torch.Tensor:
        config = self.settings
        batch, length, hidden = x.shape
        heads = config.num_attention_heads

        def split(states: torch.Tensor, count: int) -> torch.Tensor:
            return states.view(batch, length, count, -1).transpose(1, 2)

        sim = split(self.v_queries(x), config.num_inner_value_heads) @ self.v_keys
        rows = self.v_embed(
            torch.topk(sim, config.num_value_per_head, dim=-1).indices
        )  # [B, h, S, k, hidden]
        v = x * torch.einsum("bhskd->bsd", rows)
        q = turned(split(self.q_proj(x), heads), *rotation)
        k, v = cache.update(split(self.k_proj(x), heads), split(v, heads), self.index)
        keys = k.shape[2]
        dynamic_mask = torch.cat(
            (self.dynamic_mask, torch.ones(heads, max(0, keys - self.dynamic_mask.shape[1]))), 1
        )
        dt = dynamic_mask[None, :, :keys].expand(batch, -1, -1)
        added = self.prepare_dynamic_mask(dt_states=dt, attention_mask=mask)
        scores = q @ k.transpose(2, 3) / math.sqrt(hidden // heads) + added
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        result: torch.Tensor = self.o_proj((weights @ v).transpose(1, 2).reshape(batch, length, hidden))
        return result


class Experts(generation_2.Experts):
    """As those of generation 2, but act((x . down) * weight), beside down(act(up x))."""

    def __init__(self, config: DogeConfig, gated: Any) -> None:
        super().__init__(config, gated)
        del self.gate_proj

    def weigh(self, products: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gated[0].act(products * weights)
        return result

    def shared(self, x: torch.Tensor) -> Any:
        (gated,) = self.gated
        return gated.down_proj(gated.act(gated.up_proj(x)))
