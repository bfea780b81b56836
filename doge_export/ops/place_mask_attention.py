"""PlaceMaskAttention: attention in which a head sees a key or not by the key's place (generation 1).

`dynamic_mask` has a number for each head and each place in the cache, padding included. Where it is 0 the key
is masked for that head and every query: finfo.min stands for its score. Nothing is added to the others, and
beyond its end nothing is masked; the original fails there. A query whose keys are all masked averages over
all keys there are, later ones and padding included. Queries are rotated, and keys are not: the original gives
the queries to its rotation twice. Inputs and outputs: doge_export.ops.head_attention.

Source: LoserCheems/WonderfulMatrices, 9af5c82.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from doge_export.ops.cached_keys import CachedKeys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.head_attention import HeadBody, HeadMask, define

__all__ = ["OPERATOR", "place_mask_attention"]


def _bias(held: CachedKeys, x: Mapping[str, Any], lowest: float) -> torch.Tensor:
    return torch.where(held.visible[:, None] & (held.dt != 0)[:, :, None], 0.0, lowest)


def _body(parts: HeadBody, b: BodyBuilder, held: CachedKeys) -> ir.Value:
    return parts.unless(b.Equal(held.dt, b.const(0, parts.numpy)), held.visible)


place_mask_attention, OPERATOR = define(
    "PlaceMaskAttention", "doge::place_mask_attention", HeadMask(_bias, _body, by_place=True)
)
