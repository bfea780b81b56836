"""FilledMaskAttention in torch; `doge_export.graph.operators.filled_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.filled_mask_attention import MASK, OPERATOR
from doge_export.model.operators.head_attention import head_attention
from doge_export.model.operators.ratio_mask_attention import without_smallest

__all__ = ["filled_mask_attention"]


def _bias(cached: CachedKeys[torch.Tensor], x: SimpleNamespace, lowest: float) -> torch.Tensor:
    one_token = x.query.shape[1] == 1
    visible = (x.attention_mask[:, :1, None] != 0) if one_token else cached.visible
    return torch.where(visible[:, None], without_smallest(cached, x.ratio, 0, lowest), lowest)


filled_mask_attention = head_attention(OPERATOR, MASK, _bias)
