"""BoundedMaskAttention: DynamicMaskAttention on a cache that forgets, with the same result.

A key's dt never changes, and a query keeps the `keep_window_size` keys with the largest dt. A key that falls
out of them is beaten by as many others, which later queries see too: it never returns, and its slot is free
for another (docs/explanation/bounded-cache.md). So the cache holds at most keep_window_size keys a kv head,
each head its own.

| input | shape | |
|---|---|---|
| query, key, value, cos, sin, q_norm, k_norm, dt_weight, dt_bias, A | | as of DynamicMaskAttention |
| past_key, past_value | [batch, kv_heads, slots, head_dim] | rotated keys |
| past_dt | [batch, kv_heads, slots] | the keys' weights |
| past_position | int64 [batch, kv_heads, slots] | the keys' positions; -1: the slot is empty |
| attention_mask | int64 [batch, sequence] | 1 where a new token is real; others are never cached |
| position_ids | int64 [batch, sequence] | increasing along the real tokens of a row: they decide ties |

| output | shape | |
|---|---|---|
| output | [batch, sequence, heads * head_dim] | |
| present_* | as past_*, min(slots + sequence, keep_window_size) slots | |
| keep (optional, ONNX only) | bool [batch, kv_heads, sequence, slots + sequence] | the selected keys |

Slots are in no order, but for the empty ones, which are the last of a row; as many are empty in each head. A
query that sees no key averages over the cached ones and all new ones.
"""

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators.attention_body import AttentionBody
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Operator, Port, ports

__all__ = ["OPERATOR"]


def _body(options: BodyOptions) -> ir.Function:
    """Builds the operator of standard operators, for one dtype."""
    b = BodyBuilder(OPERATOR.input_names)
    x = b.inputs
    parts = AttentionBody(b, options)
    zero, one, axis1, axis2 = b.const(0), b.const(1), b.const([1]), b.const([2])
    length, lowest = parts.length, parts.lowest
    absent = b.const(-np.inf, options.numpy)
    q, k, v = parts.query(), parts.key(), parts.value()

    keys, values = b.Concat(x["past_key"], k, axis=2), b.Concat(x["past_value"], v, axis=2)
    new_dt = parts.key_weight(v)
    dt = b.Concat(x["past_dt"], new_dt, axis=2)
    mask = b.Cast(x["attention_mask"], to=ir.DataType.BOOL)
    new_position = b.Unsqueeze(b.Where(mask, x["position_ids"], b.const(-1)), axis1)
    position = b.Concat(x["past_position"], b.Expand(new_position, b.Shape(new_dt)), axis=2)
    slots = b.Squeeze(b.Shape(x["past_dt"], start=2, end=3))
    total = b.Add(slots, length)
    is_real = b.GreaterOrEqual(position, zero)  # [batch, kv_heads, keys]
    total_1 = b.Unsqueeze(total, b.const([0]))
    last = b.const(np.iinfo(np.int64).max)
    _, order = b.TopK(b.Where(is_real, position, last), total_1, axis=-1, largest=0, outputs=2)

    key_slot = b.Range(zero, total, one)
    query_slot = b.Unsqueeze(b.Range(slots, total, one), axis1)  # [sequence, 1]
    visible = b.And(b.Unsqueeze(is_real, axis2), b.LessOrEqual(key_slot, query_slot))
    exists = b.Unsqueeze(b.Or(is_real, b.GreaterOrEqual(key_slot, slots)), axis2)
    ranked = b.Where(visible, b.Unsqueeze(dt, axis2), lowest)  # [batch, kv_heads, sequence, keys]
    ranked = b.Where(exists, ranked, absent)
    bias = b.Where(exists, parts.keep_largest(ranked, order), absent)
    keep = b.Greater(bias, lowest)
    output = parts.attend(q, keys, values, bias)

    count = b.Unsqueeze(b.Min(b.int_attribute("keep_window_size"), total), b.const([0]))
    cached = b.GatherElements(b.Where(is_real, dt, absent), order, axis=-1)
    _, best = b.TopK(cached, count, axis=-1, outputs=2)
    ranks, _ = b.TopK(best, count, axis=-1, largest=0, outputs=2)
    chosen = b.GatherElements(order, ranks, axis=-1)
    rows = b.Unsqueeze(chosen, b.const([3]))
    results = (
        output,
        b.GatherND(keys, rows, batch_dims=2),
        b.GatherND(values, rows, batch_dims=2),
        b.GatherElements(dt, chosen, axis=-1),
        b.GatherElements(position, chosen, axis=-1),
        keep,
    )
    return b.function(OPERATOR.name, dict(zip(OPERATOR.output_names, results, strict=True)), options.opset)


OPERATOR = Operator(
    name="BoundedMaskAttention",
    torch_name="doge::bounded_mask_attention",
    inputs=(
        *ports("query", "key", "value", "past_key", "past_value", "past_dt"),
        Port("past_position", "int64"),
        Port("attention_mask", "int64"),
        Port("position_ids", "int64"),
        *ports("cos", "sin", "q_norm", "k_norm", "dt_weight", "dt_bias", "A"),
    ),
    outputs=(
        *ports("output", "present_key", "present_value", "present_dt"),
        Port("present_position", "int64"),
        Port("keep", "bool", optional=True, in_torch=False),
    ),
    attributes={
        "num_heads": int,
        "num_kv_heads": int,
        "keep_window_size": int,
        "scale": float,
        "epsilon": float,
    },
    body=_body,
)
