"""BoundedMaskAttention: DynamicMaskAttention on a cache that forgets, with the same result.

A key's dt never changes, and a query keeps the `keep_window_size` keys with the largest dt. A key that falls
out of them is beaten by as many others, which later queries see too: it never returns, and its slot is free
for another (docs/bounded-cache.md). So the cache holds at most keep_window_size keys a kv head, each head its
own.

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
import torch

from doge_export.ops.attention_body import AttentionBody
from doge_export.ops.custom import custom_op
from doge_export.ops.dynamic_mask_attention import attend, key_weights, normalise, rotate, select_keys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.schema import BodyOptions, Operator
from doge_export.ops.topk import stable_topk

__all__ = ["OPERATOR", "bounded_mask_attention"]

_LAST = torch.iinfo(torch.int64).max


@custom_op("doge::bounded_mask_attention")
def bounded_mask_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    past_dt: torch.Tensor,
    past_position: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    keep_window_size: int,
    scale: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The obvious twin, row by row what the module docstring says."""
    batch, length, _ = query.shape
    slots = past_dt.shape[2]
    lowest = torch.finfo(query.dtype).min
    q = query.view(batch, length, num_heads, -1)
    k = key.view(batch, length, num_kv_heads, -1)
    v = value.view(batch, length, num_kv_heads, -1).transpose(1, 2)
    q = rotate(normalise(q, q_norm, epsilon).transpose(1, 2), cos, sin)
    k = rotate(normalise(k, k_norm, epsilon).transpose(1, 2), cos, sin)

    keys, values = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    dt = torch.cat((past_dt, key_weights(v, dt_weight, dt_bias, A)), 2)
    new_position = torch.where(attention_mask != 0, position_ids, -1)
    position = torch.cat((past_position, new_position[:, None].expand(-1, num_kv_heads, -1)), 2)
    there = position >= 0
    order = torch.argsort(torch.where(there, position, _LAST), dim=-1, stable=True)

    slot = torch.arange(slots + length)
    visible = there[:, :, None] & (slot <= slots + torch.arange(length)[:, None])
    exists = (there | (slot >= slots))[:, :, None]
    ranked = torch.where(visible, dt[:, :, None], lowest)
    ranked = torch.where(exists, ranked, -torch.inf)
    by_position = order[:, :, None].expand_as(ranked)
    kept = torch.zeros_like(ranked, dtype=torch.bool)
    kept.scatter_(-1, by_position, select_keys(ranked.gather(-1, by_position), keep_window_size))
    bias = torch.where(kept, ranked, lowest)
    bias = torch.where(exists, bias, -torch.inf)
    output = attend(q, keys, values, bias, scale)

    count = min(slots + length, keep_window_size)
    cached = torch.where(there, dt, -torch.inf).gather(-1, order)
    places = torch.sort(stable_topk(cached, count)[1], dim=-1).values
    chosen = order.gather(-1, places)
    rows = chosen[..., None].expand(-1, -1, -1, keys.shape[-1])
    return (
        output,
        keys.gather(2, rows),
        values.gather(2, rows),
        dt.gather(2, chosen),
        position.gather(2, chosen),
    )


@bounded_mask_attention.register_fake
def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    past_dt: torch.Tensor,
    past_position: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    keep_window_size: int,
    scale: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, length, _ = query.shape
    _, _, slots, head_dim = past_key.shape
    count = torch.sym_min(slots + length, keep_window_size)  # type: ignore[no-untyped-call]
    shape = (batch, num_kv_heads, count)
    return (
        query.new_empty((batch, length, num_heads * head_dim)),
        past_key.new_empty((*shape, head_dim)),
        past_value.new_empty((*shape, head_dim)),
        past_dt.new_empty(shape),
        past_position.new_empty(shape),
    )


_INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "past_dt",
    "past_position",
    "attention_mask",
    "position_ids",
    "cos",
    "sin",
    "q_norm",
    "k_norm",
    "dt_weight",
    "dt_bias",
    "A",
)


def _body(options: BodyOptions) -> ir.Function:
    """The same in standard operators, for one dtype."""
    b = BodyBuilder(_INPUTS)
    x = b.inputs
    parts = AttentionBody(b, options)
    zero, one, axis1, axis2 = b.const(0), b.const(1), b.const([1]), b.const([2])
    length, lowest = parts.length, parts.lowest
    nothing = b.const(-np.inf, options.numpy)
    q, k, v = parts.query(), parts.key(), parts.value()

    keys, values = b.Concat(x["past_key"], k, axis=2), b.Concat(x["past_value"], v, axis=2)
    new_dt = parts.key_weight(v)
    dt = b.Concat(x["past_dt"], new_dt, axis=2)
    real = b.Cast(x["attention_mask"], to=ir.DataType.BOOL)
    new_position = b.Unsqueeze(b.Where(real, x["position_ids"], b.const(-1)), axis1)
    position = b.Concat(x["past_position"], b.Expand(new_position, b.Shape(new_dt)), axis=2)
    slots = b.Squeeze(b.Shape(x["past_dt"], start=2, end=3))
    total = b.Add(slots, length)
    there = b.GreaterOrEqual(position, zero)  # [batch, kv_heads, keys]
    everything = b.Unsqueeze(total, b.const([0]))
    last = b.const(np.iinfo(np.int64).max)
    _, order = b.TopK(b.Where(there, position, last), everything, axis=-1, largest=0, outputs=2)

    slot = b.Range(zero, total, one)
    query_slot = b.Unsqueeze(b.Range(slots, total, one), axis1)  # [sequence, 1]
    visible = b.And(b.Unsqueeze(there, axis2), b.LessOrEqual(slot, query_slot))
    exists = b.Unsqueeze(b.Or(there, b.GreaterOrEqual(slot, slots)), axis2)
    ranked = b.Where(visible, b.Unsqueeze(dt, axis2), lowest)  # [batch, kv_heads, sequence, keys]
    ranked = b.Where(exists, ranked, nothing)
    bias = b.Where(exists, parts.keep_largest(ranked, order), nothing)
    keep = b.Greater(bias, lowest)
    output = parts.attend(q, keys, values, bias)

    count = b.Unsqueeze(b.Min(b.int_attribute("keep_window_size"), total), b.const([0]))
    cached = b.GatherElements(b.Where(there, dt, nothing), order, axis=-1)
    _, best = b.TopK(cached, count, axis=-1, outputs=2)
    places, _ = b.TopK(best, count, axis=-1, largest=0, outputs=2)
    chosen = b.GatherElements(order, places, axis=-1)
    rows = b.Unsqueeze(chosen, b.const([3]))
    results = (
        output,
        b.GatherND(keys, rows, batch_dims=2),
        b.GatherND(values, rows, batch_dims=2),
        b.GatherElements(dt, chosen, axis=-1),
        b.GatherElements(position, chosen, axis=-1),
        keep,
    )
    return b.function(OPERATOR.name, dict(zip(OPERATOR.outputs, results, strict=True)), options.opset)


OPERATOR = Operator(
    name="BoundedMaskAttention",
    torch_name="doge::bounded_mask_attention",
    inputs=_INPUTS,
    integer_inputs=("past_position", "attention_mask", "position_ids"),
    outputs=("output", "present_key", "present_value", "present_dt", "present_position", "keep"),
    optional_outputs=("keep",),
    bool_outputs=("keep",),
    integer_outputs=("present_position",),
    attributes={
        "num_heads": int,
        "num_kv_heads": int,
        "keep_window_size": int,
        "scale": float,
        "epsilon": float,
    },
    body=_body,
)
