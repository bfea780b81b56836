"""RatioMaskAttention: attention that drops a share of all keys there are (generations 3a and 3b).

n = floor((keys - keep_window_size) * ratio), in float64, where there are more keys than that (0: always). If
n is above 0, each query head drops the keys whose dt is strictly below the n-th smallest of all keys, for all
queries alike: those before a query and after it count, and padding does. Equal keys stay or go together, so
no rule for ties is needed. dt is added to the scores, finfo.min in its place for a dropped key, and finfo.min
once more for what a query may not see: the sum of both is -inf, and of one alone it absorbs the score.
Inputs and outputs: doge_export.ops.head_attention, and `ratio`, float64 [], 0 for none.

Source: SmallDoges/small-doge, 42e5a63 to a6a55c4.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from doge_export.ops.cached_keys import CachedKeys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.head_attention import HeadBody, HeadMask, define

__all__ = ["OPERATOR", "ratio_mask_attention", "without_smallest", "without_smallest_body"]


def without_smallest(held: CachedKeys, ratio: torch.Tensor, window: int, lowest: float) -> torch.Tensor:
    """dt [batch, heads, 1, keys], and `lowest` in its place for the keys that are dropped."""
    beyond = held.count - window
    count = torch.clamp((beyond.double() * ratio).to(torch.int64), min=0)
    ascending = torch.where(held.exists[:, :, 0], held.dt, torch.inf).sort(-1).values
    place = torch.clamp(count - 1, min=0).expand(*held.dt.shape[:2], 1)
    limit = torch.where(count > 0, ascending.gather(-1, place), -torch.inf)
    return torch.where(held.dt < limit, lowest, held.dt)[:, :, None]


def without_smallest_body(parts: HeadBody, b: BodyBuilder, held: CachedKeys, window: ir.Value) -> ir.Value:
    """The same in standard operators."""
    dtype, zero = parts.numpy, b.const(0)
    beyond = b.Cast(b.Sub(held.count, window), to=ir.DataType.DOUBLE)
    count = b.Max(b.Cast(b.Mul(beyond, b.inputs["ratio"]), to=ir.DataType.INT64), zero)
    ranked = held.dt
    if held.exists is not None:
        exists = b.Squeeze(held.exists, b.const([2]))
        ranked = b.Where(exists, ranked, b.const(np.inf, dtype))
    ascending, _ = b.TopK(ranked, b.Shape(ranked, start=2, end=3), axis=-1, largest=0, outputs=2)
    place = b.Max(b.Sub(count, b.const(1)), zero)
    place = b.Expand(place, b.Concat(b.Shape(ranked, start=0, end=2), b.const([1]), axis=0))
    limit = b.Where(
        b.Greater(count, zero), b.GatherElements(ascending, place, axis=-1), b.const(-np.inf, dtype)
    )
    result: ir.Value = b.Unsqueeze(b.Where(b.Less(held.dt, limit), parts.lowest, held.dt), b.const([2]))
    return result


def _bias(held: CachedKeys, x: Mapping[str, Any], lowest: float) -> torch.Tensor:
    bias = without_smallest(held, x["ratio"], x["keep_window_size"], lowest)
    return bias + torch.where(held.visible[:, None], 0.0, lowest)


def _body(parts: HeadBody, b: BodyBuilder, held: CachedKeys) -> ir.Value:
    bias = without_smallest_body(parts, b, held, b.int_attribute("keep_window_size"))
    hidden = b.Where(b.Unsqueeze(held.visible, b.const([1])), b.const(0, parts.numpy), parts.lowest)
    result: ir.Value = b.Add(bias, hidden)
    return result


ratio_mask_attention, OPERATOR = define(
    "RatioMaskAttention",
    "doge::ratio_mask_attention",
    HeadMask(_bias, _body, attributes=("keep_window_size",), inputs=("ratio",)),
)
