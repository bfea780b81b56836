"""RatioMaskAttention in torch; `doge_export.graph.operators.ratio_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.ratio_mask_attention import MASK, OPERATOR
from doge_export.model.operators.head_attention import head_attention

__all__ = ["ratio_mask_attention", "without_smallest"]


def without_smallest(
    cached: CachedKeys[torch.Tensor], ratio: torch.Tensor, window: int, lowest: float
) -> torch.Tensor:
    """dt [batch, heads, 1, keys], and `lowest` in its place for the keys that are dropped."""
    beyond = cached.count - window
    count = torch.clamp((beyond.double() * ratio).to(torch.int64), min=0)
    ascending = torch.where(cached.exists[:, :, 0], cached.dt, torch.inf).sort(-1).values
    rank = torch.clamp(count - 1, min=0).expand(*cached.dt.shape[:2], 1)
    limit = torch.where(count > 0, ascending.gather(-1, rank), -torch.inf)
    return torch.where(cached.dt < limit, lowest, cached.dt)[:, :, None]


def _bias(cached: CachedKeys[torch.Tensor], x: SimpleNamespace, lowest: float) -> torch.Tensor:
    bias = without_smallest(cached, x.ratio, x.keep_window_size, lowest)
    return bias + torch.where(cached.visible[:, None], 0.0, lowest)


ratio_mask_attention = head_attention(OPERATOR, MASK, _bias)
