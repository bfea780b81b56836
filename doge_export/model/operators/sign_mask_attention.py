"""SignMaskAttention in torch; `doge_export.graph.operators.sign_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.sign_mask_attention import MASK, OPERATOR
from doge_export.model.operators.head_attention import head_attention

__all__ = ["sign_mask_attention"]


def _bias(cached: CachedKeys[torch.Tensor], x: SimpleNamespace, lowest: float) -> torch.Tensor:
    visible = cached.visible[:, None] & ~(cached.dt < 1)[:, :, None]
    return torch.where(visible, 0.0, lowest)


sign_mask_attention = head_attention(OPERATOR, MASK, _bias)
