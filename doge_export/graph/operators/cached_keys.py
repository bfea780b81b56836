"""What every attention does with its cache of growing or static size, whatever its mask: where the new keys
and values go, which keys there are, and which of them a query may see.

Without `cache_position` the cache grows: new keys and values are appended. With it the cache is a buffer of
fixed size: they are written at slots cache_position ... cache_position + sequence - 1, and slots from there
on do not exist yet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import onnx_ir as ir

from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Port, ports

__all__ = ["CACHE_INPUTS", "CALL_INPUTS", "OUTPUTS", "CachedKeys", "cached_keys_body"]

#: The first inputs of every attention with such a cache, its last ones, and what it gives.
CALL_INPUTS = (
    *ports("query", "key", "value", "past_key", "past_value"),
    Port("attention_mask", "int64"),
    *ports("cos", "sin"),
)
CACHE_INPUTS = (Port("past_dt", optional=True), Port("cache_position", "int64", optional=True))
OUTPUTS = (
    *ports("output", "present_key", "present_value"),
    Port("present_dt", optional=True),
    Port("keep", "bool", optional=True, in_torch=False),
)

T = TypeVar("T")


@dataclass(frozen=True)
class CachedKeys(Generic[T]):
    """Values of a graph, or tensors.

    keys, values [batch, kv_heads, keys, head_dim]; dt [batch, heads of dt, keys]; present_*: the cache after
    the call; visible: bool [1 or batch, sequence, keys]; exists: bool [batch, 1, 1, keys], in a graph None
    where all do; count: how many exist, int64, of a shape that goes with [batch, heads of dt, keys].
    """

    keys: T
    values: T
    dt: T
    present_key: T
    present_value: T
    visible: T
    exists: Any  # T, or None in a graph
    count: T


def cached_keys_body(
    b: BodyBuilder,
    options: BodyOptions,
    length: ir.Value,
    k: ir.Value,
    v: ir.Value,
    key_weight: Callable[[ir.Value], ir.Value],
) -> CachedKeys[ir.Value]:
    """Adds nodes that put k and v [batch, kv_heads, sequence, head_dim] of the new tokens into the cache.
    `length`: of the call, a scalar; `key_weight` gives the dt of values."""
    x = b.inputs
    zero, one, axis2 = b.const(0), b.const(1), b.const([2])
    total = b.Squeeze(b.Shape(x["attention_mask"], start=1, end=2))  # static: the slots
    if options.static:
        present_key = b.TensorScatter(x["past_key"], k, x["cache_position"], axis=2)
        present_value = b.TensorScatter(x["past_value"], v, x["cache_position"], axis=2)
        # TensorRT takes TensorScatter for a cache of four axes only; dt is small, and is scattered.
        slots = b.Add(b.Unsqueeze(x["cache_position"], b.const([1])), b.Range(zero, length, one))
        new_dt = key_weight(v)
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
        dt = key_weight(values)
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
