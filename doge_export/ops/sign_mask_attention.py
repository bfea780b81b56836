"""SignMaskAttention: attention in which a head sees a key or not by the sign of A (generation 2).

dt = exp(A * softplus(dt_proj(values of the position, repeated for each query head))). Where dt is below 1 the
key is masked for that head and every query: finfo.min stands for its score. Nothing is added to the others.
So with A at least 0 the mask does nothing, and with A below 0 nearly every key is masked, unless softplus is
so small that dt rounds to 1. A head that masks all keys has the scores absorbed by finfo.min, and averages
over all keys there are, later ones and padding included. Inputs and outputs: doge_export.ops.head_attention.

Source: LoserCheems/WonderfulMatrices, 8de2f6f to 823c389.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from doge_export.ops.cached_keys import CachedKeys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.head_attention import HeadBody, HeadMask, define

__all__ = ["OPERATOR", "sign_mask_attention"]


def _bias(held: CachedKeys, x: Mapping[str, Any], lowest: float) -> torch.Tensor:
    seen = held.visible[:, None] & ~(held.dt < 1)[:, :, None]
    return torch.where(seen, 0.0, lowest)


def _body(parts: HeadBody, b: BodyBuilder, held: CachedKeys) -> ir.Value:
    return parts.unless(b.Less(held.dt, b.const(1, parts.numpy)), held.visible)


sign_mask_attention, OPERATOR = define(
    "SignMaskAttention", "doge::sign_mask_attention", HeadMask(_bias, _body, repeated=True)
)
