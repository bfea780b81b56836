"""What every attention does with its cache of growing or static size, whatever its mask: where the new keys
and values go, which keys there are, and which of them a query may see. In torch, and in standard operators.

Without `cache_position` the cache grows: new keys and values are appended. With it the cache is a buffer of
fixed size: they are written at slots cache_position ... cache_position + sequence - 1, and slots from there
on do not exist yet.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import onnx_ir as ir
import torch

from doge_export.ops.function import BodyBuilder
from doge_export.ops.schema import BodyOptions

__all__ = ["CachedKeys", "cached_keys", "cached_keys_body"]


class CachedKeys(NamedTuple):
    """keys, values [batch, kv_heads, keys, head_dim]; dt [batch, heads of dt, keys]; what the cache is after
    the call; visible bool [1 or batch, sequence, keys]; exists: bool [batch, 1, 1, keys], None where all do
    (torch: one True); count: how many exist, int64, of a shape that goes with [batch, heads of dt, keys]."""

    keys: Any
    values: Any
    dt: Any
    present_key: Any
    present_value: Any
    visible: Any
    exists: Any
    count: Any


def cached_keys(
    k: torch.Tensor,
    v: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    attention_mask: torch.Tensor,
    past_dt: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    weigh: Callable[[torch.Tensor], torch.Tensor],
    sliding_window: int = 0,
) -> CachedKeys:
    """k, v [batch, kv_heads, sequence, head_dim] of the new tokens; `weigh` gives the dt of values."""
    length = k.shape[2]
    if cache_position is None:
        past = past_key.shape[2]
        present_key, present_value = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        # The reference's sliding cache forgets what no later query can see, and so must a row
        # whose keys are all hidden: it averages over the keys that are there.
        start = max(0, past - sliding_window + 1) if sliding_window else 0
        keys, values = present_key[:, :, start:], present_value[:, :, start:]
        mask = attention_mask[:, start:]
        dt = weigh(values)
        query_slot = torch.arange(past, past + length)[None]
        key_slot = torch.arange(start, past + length)
        exists = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        count = torch.tensor([[[past + length - start]]])
    else:
        assert past_dt is not None
        query_slot = cache_position[:, None] + torch.arange(length)
        index = query_slot[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
        present_key, present_value = past_key.scatter(2, index, k), past_value.scatter(2, index, v)
        new_dt = weigh(v)
        dt = past_dt.scatter(2, query_slot[:, None].expand(-1, new_dt.shape[1], -1), new_dt)
        keys, values, mask = present_key, present_value, attention_mask
        key_slot = torch.arange(past_key.shape[2])
        count = (cache_position + length)[:, None, None]
        exists = (key_slot < count)[:, None]
        if sliding_window:
            first = cache_position[:, None] - sliding_window
            exists = exists & (key_slot > first)[:, None, None]
    visible = (key_slot <= query_slot[..., None]) & (mask[:, None] != 0)
    if sliding_window:
        visible = visible & (key_slot > query_slot[..., None] - sliding_window)
    return CachedKeys(keys, values, dt, present_key, present_value, visible, exists, count)


def cached_keys_body(
    b: BodyBuilder,
    options: BodyOptions,
    length: ir.Value,
    k: ir.Value,
    v: ir.Value,
    weigh: Callable[[ir.Value], ir.Value],
) -> CachedKeys:
    """The same in standard operators; `length`: of the call, a scalar."""
    x = b.inputs
    zero, one, axis2 = b.const(0), b.const(1), b.const([2])
    total = b.Squeeze(b.Shape(x["attention_mask"], start=1, end=2))  # static: the slots
    if options.static:
        present_key = b.TensorScatter(x["past_key"], k, x["cache_position"], axis=2)
        present_value = b.TensorScatter(x["past_value"], v, x["cache_position"], axis=2)
        # TensorRT takes TensorScatter for a cache of four axes only; dt is small, and is scattered.
        slots = b.Add(b.Unsqueeze(x["cache_position"], b.const([1])), b.Range(zero, length, one))
        new_dt = weigh(v)
        index = b.Expand(b.Unsqueeze(slots, b.const([1])), b.Shape(new_dt))
        dt = b.ScatterElements(x["past_dt"], index, new_dt, axis=2)
        keys, values, mask = present_key, present_value, x["attention_mask"]
        first = b.Unsqueeze(x["cache_position"], b.const([1, 2]))  # [batch, 1, 1]
        key_slot = b.Range(zero, total, one)
        count = b.Add(first, length)
    else:
        present_key = b.Concat(x["past_key"], k, axis=2)
        present_value = b.Concat(x["past_value"], v, axis=2)
        keys, values, mask = present_key, present_value, x["attention_mask"]
        past = b.Sub(total, length)
        start = zero
        if options.sliding_window:
            reach = b.Sub(b.int_attribute("sliding_window"), one)
            start = b.Max(b.Sub(past, reach), zero)
            begin, end = b.Unsqueeze(start, b.const([0])), b.Unsqueeze(total, b.const([0]))
            keys, values = b.Slice(keys, begin, end, axis2), b.Slice(values, begin, end, axis2)
            mask = b.Slice(mask, begin, end, b.const([1]))
        dt = weigh(values)
        first = past
        key_slot = b.Range(start, total, one)
        count = None

    query_slot = b.Add(b.Unsqueeze(b.Range(zero, length, one), b.const([1])), first)
    visible = b.And(
        b.LessOrEqual(key_slot, query_slot), b.Cast(b.Unsqueeze(mask, b.const([1])), to=ir.DataType.BOOL)
    )
    if options.sliding_window:
        visible = b.And(visible, b.Greater(key_slot, b.Sub(query_slot, b.int_attribute("sliding_window"))))
    exists = None
    if options.static:
        exists = b.Less(key_slot, count)
        if options.sliding_window:
            exists = b.And(exists, b.Greater(key_slot, b.Sub(first, b.int_attribute("sliding_window"))))
        exists = b.Unsqueeze(exists, b.const([1]))
    return CachedKeys(keys, values, dt, present_key, present_value, visible, exists, count or total)
