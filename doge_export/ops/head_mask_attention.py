"""HeadMaskAttention: dynamic mask attention with a mask for each query head (generation 3c).

As DynamicMaskAttention, but for its heads: of the keys that a query may see, each query head keeps the
`keep_window_size` with the largest dt, ties by the lower position; dt is added to the scores of those that
stay, and finfo.min stands for all others. Inputs and outputs: doge_export.ops.head_attention.

Source: SmallDoges/small-doge, 91b5298 to e5a2639.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from doge_export.ops.cached_keys import CachedKeys
from doge_export.ops.dynamic_mask_attention import select_keys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.head_attention import HeadBody, HeadMask, define

__all__ = ["OPERATOR", "head_mask_attention"]


def _bias(held: CachedKeys, x: Mapping[str, Any], lowest: float) -> torch.Tensor:
    ranked = torch.where(held.visible[:, None], held.dt[:, :, None], lowest)
    ranked = torch.where(held.exists, ranked, -torch.inf)
    return torch.where(select_keys(ranked, x["keep_window_size"]), ranked, lowest)


def _body(parts: HeadBody, b: BodyBuilder, held: CachedKeys) -> ir.Value:
    ranked = b.Where(
        b.Unsqueeze(held.visible, b.const([1])), b.Unsqueeze(held.dt, b.const([2])), parts.lowest
    )
    if held.exists is not None:
        ranked = b.Where(held.exists, ranked, b.const(-np.inf, parts.numpy))
    return parts.keep_largest(ranked)


head_mask_attention, OPERATOR = define(
    "HeadMaskAttention",
    "doge::head_mask_attention",
    HeadMask(_bias, _body, attributes=("keep_window_size",)),
)
