"""RatioMaskAttention: attention that drops a share of all keys there are (generations 3a and 3b).

n = floor((keys - keep_window_size) * ratio), in float64, where there are more keys than that (0: always). If
n is above 0, each query head drops the keys whose dt is strictly below the n-th smallest of all keys, for all
queries alike: those before a query and after it count, and padding does. Equal keys stay or go together, so
no rule for ties is needed. dt is added to the scores, finfo.min in its place for a dropped key, and finfo.min
once more for what a query may not see: the sum of both is -inf, and of one alone it absorbs the score.
Inputs and outputs: `head_attention.py`, and `ratio`, float64 [], 0 for none.

Source: SmallDoges/small-doge, 42e5a63 to a6a55c4.
"""

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.head_attention import HeadBody, HeadMask, define
from doge_export.graph.operators.schema import Port

__all__ = ["MASK", "OPERATOR", "without_smallest"]


def without_smallest(
    parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value], window: ir.Value
) -> ir.Value:
    """dt [batch, heads, 1, keys], and finfo.min in its place for the keys that are dropped."""
    dtype, zero = parts.numpy, b.const(0)
    beyond = b.Cast(b.Sub(cached.count, window), to=ir.DataType.DOUBLE)
    count = b.Max(b.Cast(b.Mul(beyond, b.inputs["ratio"]), to=ir.DataType.INT64), zero)
    ranked = cached.dt
    if cached.exists is not None:
        exists = b.Squeeze(cached.exists, b.const([2]))
        ranked = b.Where(exists, ranked, b.const(np.inf, dtype))
    ascending, _ = b.TopK(ranked, b.Shape(ranked, start=2, end=3), axis=-1, largest=0, outputs=2)
    rank = b.Max(b.Sub(count, b.const(1)), zero)
    rank = b.Expand(rank, b.Concat(b.Shape(ranked, start=0, end=2), b.const([1]), axis=0))
    limit = b.Where(
        b.Greater(count, zero), b.GatherElements(ascending, rank, axis=-1), b.const(-np.inf, dtype)
    )
    result: ir.Value = b.Unsqueeze(b.Where(b.Less(cached.dt, limit), parts.lowest, cached.dt), b.const([2]))
    return result


def _body(parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value]) -> ir.Value:
    bias = without_smallest(parts, b, cached, b.int_attribute("keep_window_size"))
    masked = b.Where(b.Unsqueeze(cached.visible, b.const([1])), b.const(0, parts.numpy), parts.lowest)
    result: ir.Value = b.Add(bias, masked)
    return result


MASK = HeadMask(_body, attributes=("keep_window_size",), inputs=(Port("ratio", "double"),))
OPERATOR = define("RatioMaskAttention", "doge::ratio_mask_attention", MASK)
