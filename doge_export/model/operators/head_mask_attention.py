"""HeadMaskAttention in torch; `doge_export.graph.operators.head_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.head_mask_attention import MASK, OPERATOR
from doge_export.model.operators.attention_parts import select_keys
from doge_export.model.operators.head_attention import head_attention

__all__ = ["head_mask_attention"]


def _bias(cached: CachedKeys[torch.Tensor], x: SimpleNamespace, lowest: float) -> torch.Tensor:
    ranked = torch.where(cached.visible[:, None], cached.dt[:, :, None], lowest)
    ranked = torch.where(cached.exists, ranked, -torch.inf)
    return torch.where(select_keys(ranked, x.keep_window_size), ranked, lowest)


head_mask_attention = head_attention(OPERATOR, MASK, _bias)
