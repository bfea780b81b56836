"""Generations 3a, 3b and 3c (SmallDoges/small-doge, 42e5a63 to e5a2639), and what the first two were for some
weeks (LoserCheems/WonderfulMatrices, b8c60e8; SmallDoges/small-doge, efdbaaa to ae7abf7)."""

from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.validate.backends.legacy.attention import EarlierAttention

__all__ = [
    "Experts",
    "FilledRatioAttention",
    "RankedExperts",
    "RatioAttention",
    "TopAttention",
    "WindowedRatioAttention",
]


class RatioAttention(EarlierAttention):
    """3a: exp(A * softplus(dt)) is added; if 0 < ratio < 1, what is below the n-th smallest of all L keys
    becomes finfo.min first, n = int(L * ratio)."""

    def dropped(self, keys: int) -> int:
        ratio = self.settings.dynamic_mask_ratio
        return int(keys * ratio) if 0.0 < ratio < 1.0 else 0

    def without_smallest(self, dt_states: torch.Tensor) -> torch.Tensor:
        """[B, H, 1, L] of dt [B, H, L]"""
        added = dt_states[:, :, None, :]
        n = self.dropped(dt_states.shape[-1])
        if n > 0:
            nth = torch.kthvalue(added, n, dim=-1, keepdim=True).values
            added = added.masked_fill(added < nth, torch.finfo(added.dtype).min)
        return added

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.without_smallest(dt_states) + attention_mask


class FilledRatioAttention(RatioAttention):
    """3a until 23 January 2025: finfo.min takes the place of exp(A * softplus(dt)) where the causal mask is
    not 0, of which the original reads as many columns as there are new tokens: one token reads the first."""

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        columns = 1 if attention_mask.shape[2] == 1 else attention_mask.shape[3]
        hidden = attention_mask[..., :columns] != 0
        return self.without_smallest(dt_states).masked_fill(hidden, torch.finfo(dt_states.dtype).min)


class WindowedRatioAttention(RatioAttention):
    """3b: the same only if L > W, with n = int((L - W) * ratio). The original raises an error for a ratio of
    0 there; here nothing is dropped."""

    def dropped(self, keys: int) -> int:
        window = self.settings.keep_window_size
        return int((keys - window) * self.settings.dynamic_mask_ratio) if keys > window else 0


class TopAttention(EarlierAttention):
    """3c: finfo.min where the query may not look, and for all but the W largest of each row of each head."""

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lowest, window = torch.finfo(dt_states.dtype).min, self.settings.keep_window_size
        rows = dt_states[:, :, None, :].expand(-1, -1, attention_mask.shape[2], -1)
        rows = rows.masked_fill(attention_mask != 0, lowest)
        if rows.shape[-1] > window:
            stay = torch.zeros_like(rows).scatter(-1, torch.topk(rows, window, dim=-1).indices, 1.0)
            rows = rows.masked_fill(stay == 0, lowest)
        return rows


class Experts(torch.nn.Module):
    """Of 3b and 3c: router_gate x viewed as (2, B * S, keys), which gives a token halves of others."""

    def __init__(self, config: DogeConfig, gated: Any) -> None:
        super().__init__()
        for name, part in gated.named_children():  # the tensors have no "gated" in their names
            setattr(self, name, part)
        self.gated = (gated,)
        self.top_k, self.num_keys = config.num_experts_per_tok, int(config.num_experts**0.5)
        self.norm_topk_prob = config.norm_topk_prob
        self.add_router(config)
        self.down_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length, hidden = x.shape
        logits = self.logits(x)
        e, best = self.choose(logits, self.top_k)
        e, weight = e.view(batch * length, -1), self.weights(best).view(batch * length, -1)
        w = self.gated[0].act((x.reshape(-1, 1, hidden) * self.down_embed(e)).sum(-1)) * weight
        routed = (w[..., None] * self.up_embed(e)).sum(1).view(batch, length, hidden)
        return self.sum(self.gated[0](x), routed), logits

    def add_router(self, config: DogeConfig) -> None:
        self.router_gate = torch.nn.Linear(config.hidden_size, 2 * self.num_keys, bias=False)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[2, B * S, keys]"""
        result: torch.Tensor = self.router_gate(x).view(2, x.shape[0] * x.shape[1], -1)
        return result

    def weights(self, best: torch.Tensor) -> torch.Tensor:
        weight = best.softmax(-1)
        return weight / weight.sum(-1, keepdim=True) if self.norm_topk_prob else weight

    def sum(self, shared: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
        return shared + routed

    def choose(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` best experts of router logits [2, B * S, keys], and their scores."""
        (a, b), (i, j) = torch.topk(logits, self.num_keys, dim=-1)
        scores = (a[..., :, None] + b[..., None, :]).flatten(-2)
        numbers = (i[..., :, None] * self.num_keys + j[..., None, :]).flatten(-2)
        best, indices = torch.topk(scores, count, dim=-1)
        return numbers.gather(-1, indices), best


class RankedExperts(Experts):
    """Of 3b from 17 March to 14 April 2025, which had two mistakes: the values and the indices of the first
    half's topk are added to each other, where the values of both halves were meant, and the places among
    these sums are taken for the experts."""

    def choose(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.topk(logits[0], self.num_keys, dim=-1)
        sums = values.unsqueeze(-1) + indices.unsqueeze(-2)
        best, experts = torch.topk(sums.flatten(1), count, dim=-1)
        return experts, best
