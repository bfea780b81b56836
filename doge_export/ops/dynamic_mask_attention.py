"""DynamicMaskAttention: everything between a Doge layer's q/k/v projections and its output projection.

For each kv head, a key's weight is dt = exp(A * softplus(dt_proj(cached values of its position))). Of
the keys that a query may see, the `keep_window_size` with the largest dt stay, ties by the lower
position; dt is added to the scores of those that stay, and finfo.min stands for all others.

Source: Doge, arXiv 2412.11834, as transformers >= 5.23 `DogeAttention` computes it (eager).

| input | shape | |
|---|---|---|
| query | [batch, sequence, heads * head_dim] | as projected: not yet normalised, not yet rotated |
| key, value | [batch, sequence, kv_heads * head_dim] | as projected |
| past_key, past_value | [batch, kv_heads, past, head_dim] | rotated keys; static: [.., slots, head_dim] |
| attention_mask | int64 [batch, past + sequence] | 1 where a real token stands; static: [batch, slots] |
| cos, sin | [batch, sequence, head_dim / 2] | of the new tokens |
| q_norm, k_norm | [head_dim] | RMSNorm weights |
| dt_weight, dt_bias | [kv_heads, kv_heads * head_dim], [kv_heads] | a bias of zeros is none |
| A | [kv_heads] | |
| past_dt | [batch, kv_heads, slots] (optional) | static: dt of the cached positions |
| cache_position | int64 [batch] (optional) | static: the slot of the first new token |

Without `cache_position` the cache grows: new keys and values are appended. With it the cache is a
buffer of fixed size: they are written at slots cache_position ... cache_position + sequence - 1, and
slots from there on do not exist yet.

| output | shape | |
|---|---|---|
| output | [batch, sequence, heads * head_dim] | |
| present_key, present_value | [batch, kv_heads, past + sequence, head_dim] | static: the shape of past |
| present_dt | [batch, kv_heads, keys] | growing with sliding_window: of the keys still in reach |
| keep (optional, ONNX only) | bool [batch, kv_heads, sequence, keys] | the selected keys |
"""

import numpy as np
import onnx_ir as ir
import torch

from doge_export.ops.function import BodyBuilder
from doge_export.ops.schema import BodyOptions, Operator
from doge_export.ops.topk import stable_topk

__all__ = ["OPERATOR", "dynamic_mask_attention", "key_weights", "select_keys"]


def key_weights(
    values: torch.Tensor, dt_weight: torch.Tensor, dt_bias: torch.Tensor, A: torch.Tensor
) -> torch.Tensor:
    """dt of each position: [batch, kv_heads, length] from values [batch, kv_heads, length, head_dim]."""
    flat = values.transpose(1, 2).flatten(2)
    dt = torch.nn.functional.linear(flat, dt_weight, dt_bias)
    return torch.exp(A * torch.nn.functional.softplus(dt)).transpose(-1, -2)


def select_keys(ranked: torch.Tensor, keep_window_size: int) -> torch.Tensor:
    """bool mask of the `keep_window_size` largest entries of each row of `ranked` [..., keys]."""
    if ranked.shape[-1] <= keep_window_size:
        return torch.ones_like(ranked, dtype=torch.bool)
    _, indices = stable_topk(ranked, keep_window_size)
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, indices, True)


def _normalise(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = states.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(states.dtype)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@torch.library.custom_op("doge::dynamic_mask_attention", mutates_args=())
def dynamic_mask_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    attention_mask: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    past_dt: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    keep_window_size: int,
    sliding_window: int,
    scale: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The obvious twin, row by row what the module docstring says. `sliding_window` 0 means none."""
    batch, length, _ = query.shape
    lowest = torch.finfo(query.dtype).min
    q = query.view(batch, length, num_heads, -1)
    k = key.view(batch, length, num_kv_heads, -1)
    v = value.view(batch, length, num_kv_heads, -1).transpose(1, 2)
    q = _rotate(_normalise(q, q_norm, epsilon).transpose(1, 2), cos, sin)
    k = _rotate(_normalise(k, k_norm, epsilon).transpose(1, 2), cos, sin)

    if cache_position is None:
        past = past_key.shape[2]
        present_key, present_value = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        # The reference's sliding cache forgets what no later query can see, and so must a row
        # whose keys are all hidden: it averages over the keys that are there.
        start = max(0, past - sliding_window + 1) if sliding_window else 0
        keys, values = present_key[:, :, start:], present_value[:, :, start:]
        mask = attention_mask[:, start:]
        dt = key_weights(values, dt_weight, dt_bias, A)
        query_slot = torch.arange(past, past + length)[None]
        key_slot = torch.arange(start, past + length)
        exists = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    else:
        assert past_dt is not None
        slots = past_key.shape[2]
        query_slot = cache_position[:, None] + torch.arange(length)
        index = query_slot[:, None, :, None].expand(-1, num_kv_heads, -1, k.shape[-1])
        present_key, present_value = past_key.scatter(2, index, k), past_value.scatter(2, index, v)
        new_dt = key_weights(v, dt_weight, dt_bias, A)
        dt = past_dt.scatter(2, index[..., 0], new_dt)
        keys, values, mask = present_key, present_value, attention_mask
        key_slot = torch.arange(slots)
        exists = (key_slot < cache_position[:, None] + length)[:, None, None]
        if sliding_window:
            first = cache_position[:, None] - sliding_window
            exists = exists & (key_slot > first)[:, None, None]

    visible = (key_slot <= query_slot[..., None]) & (mask[:, None] != 0)
    if sliding_window:
        visible = visible & (key_slot > query_slot[..., None] - sliding_window)
    ranked = torch.where(visible[:, None], dt[:, :, None], lowest)
    ranked = torch.where(exists, ranked, -torch.inf)
    bias = torch.where(select_keys(ranked, keep_window_size), ranked, lowest)
    bias = torch.where(exists, bias, -torch.inf)

    group = num_heads // num_kv_heads
    scores = q @ keys.repeat_interleave(group, 1).transpose(2, 3) * scale
    scores = scores + bias.repeat_interleave(group, 1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = (weights @ values.repeat_interleave(group, 1)).transpose(1, 2).flatten(2)
    return output, present_key, present_value, dt.contiguous()


@dynamic_mask_attention.register_fake
def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    attention_mask: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    past_dt: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    keep_window_size: int,
    sliding_window: int,
    scale: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, length, _ = query.shape
    _, _, past, head_dim = past_key.shape
    total = past + length if cache_position is None else past
    shape = (batch, num_kv_heads, total, head_dim)
    reach = total
    if sliding_window and cache_position is None:
        reach = torch.sym_min(past, sliding_window - 1) + length  # type: ignore[no-untyped-call]
    return (
        query.new_empty((batch, length, num_heads * head_dim)),
        past_key.new_empty(shape),
        past_value.new_empty(shape),
        query.new_empty((batch, num_kv_heads, reach)),
    )


_INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "attention_mask",
    "cos",
    "sin",
    "q_norm",
    "k_norm",
    "dt_weight",
    "dt_bias",
    "A",
    "past_dt",
    "cache_position",
)


def _body(options: BodyOptions) -> ir.Function:
    """The same in standard operators, for one dtype and cache kind."""
    # No more inputs than the nodes have: TensorRT's parser counts them.
    b = BodyBuilder(_INPUTS if options.static else _INPUTS[:-2])
    x = b.inputs
    heads, kv_heads = b.int_attribute("num_heads"), b.int_attribute("num_kv_heads")
    zero, one, axis2 = b.const(0), b.const(1), b.const([2])
    # Lengths come from inputs that all layers share: onnxruntime then computes the mask once for all.
    length = b.Squeeze(b.Shape(x["cos"], start=1, end=2))
    total = b.Squeeze(b.Shape(x["attention_mask"], start=1, end=2))  # static: the slots
    lowest = b.const(options.lowest, options.numpy)

    def split(name: str, count: ir.Value) -> ir.Value:
        shape = b.Concat(b.const([0, 0]), b.Unsqueeze(count, b.const([0])), b.const([-1]), axis=0)
        result: ir.Value = b.Reshape(x[name], shape)
        return result

    def prepare(name: str, count: ir.Value, weight: str) -> ir.Value:
        epsilon = b.attribute("epsilon", ir.AttributeType.FLOAT, "epsilon")
        states = b.RMSNormalization(split(name, count), x[weight], epsilon=epsilon, axis=-1)
        states = b.Transpose(states, perm=[0, 2, 1, 3])
        result: ir.Value = b.RotaryEmbedding(states, x["cos"], x["sin"])
        return result

    def key_weight(values: ir.Value) -> ir.Value:
        """[batch, kv_heads, n, head_dim] -> dt [batch, kv_heads, n]"""
        flat = b.Reshape(b.Transpose(values, perm=[0, 2, 1, 3]), b.const([0, 0, -1]))
        parts = [flat, b.Transpose(x["dt_weight"], perm=[1, 0]), x["dt_bias"], x["A"]]
        # An error in the exponent is one of dt's size in the scores, and dt may be large: in float64
        # the rounding of the whole chain is that of the result alone.
        wide = options.float64 and options.dtype == ir.DataType.FLOAT
        if wide:
            parts = [b.Cast(part, to=ir.DataType.DOUBLE) for part in parts]
        flat, weight, bias, scale = parts
        soft = _softplus(b, b.Add(b.MatMul(flat, weight), bias), options, keep_wide=wide)
        dt = b.Exp(b.Mul(scale, soft))
        if wide:
            dt = b.Cast(dt, to=options.dtype)
        result: ir.Value = b.Transpose(dt, perm=[0, 2, 1])
        return result

    q = prepare("query", heads, "q_norm")
    k = prepare("key", kv_heads, "k_norm")
    v = b.Transpose(split("value", kv_heads), perm=[0, 2, 1, 3])

    if options.static:
        present_key = b.TensorScatter(x["past_key"], k, x["cache_position"], axis=2)
        present_value = b.TensorScatter(x["past_value"], v, x["cache_position"], axis=2)
        # TensorRT takes TensorScatter for a cache of four axes only; dt is small, and is scattered.
        slots = b.Add(b.Unsqueeze(x["cache_position"], b.const([1])), b.Range(zero, length, one))
        new_dt = key_weight(v)
        index = b.Expand(b.Unsqueeze(slots, b.const([1])), b.Shape(new_dt))
        present_dt = b.ScatterElements(x["past_dt"], index, new_dt, axis=2)
        keys, values, mask, dt = present_key, present_value, x["attention_mask"], present_dt
        first = b.Unsqueeze(x["cache_position"], b.const([1, 2]))  # [batch, 1, 1]
        key_slot = b.Range(zero, total, one)
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
        dt = present_dt = key_weight(values)
        first = past
        key_slot = b.Range(start, total, one)

    # visible: [batch, sequence, keys]
    query_slot = b.Add(b.Unsqueeze(b.Range(zero, length, one), b.const([1])), first)
    visible = b.And(
        b.LessOrEqual(key_slot, query_slot), b.Cast(b.Unsqueeze(mask, b.const([1])), to=ir.DataType.BOOL)
    )
    if options.sliding_window:
        visible = b.And(visible, b.Greater(key_slot, b.Sub(query_slot, b.int_attribute("sliding_window"))))
    ranked = b.Where(
        b.Unsqueeze(visible, b.const([1])), b.Unsqueeze(dt, axis2), lowest
    )  # [batch, kv_heads, sequence, keys]
    if options.static:
        exists = b.Less(key_slot, b.Add(first, length))
        if options.sliding_window:
            exists = b.And(exists, b.Greater(key_slot, b.Sub(first, b.int_attribute("sliding_window"))))
        exists = b.Unsqueeze(exists, b.const([1]))
        ranked = b.Where(exists, ranked, b.const(-np.inf, options.numpy))
    bias = _keep_largest(b, ranked, lowest, options)
    if options.static:
        bias = b.Where(exists, bias, b.const(-np.inf, options.numpy))
    keep = b.Greater(bias, lowest)

    # All query heads of a kv head together: [batch, kv_heads, group * sequence, head_dim]
    rows = b.Concat(b.const([0]), b.Unsqueeze(kv_heads, b.const([0])), b.const([-1]), axis=0)
    head_dim = b.Shape(x["past_key"], start=3, end=4)
    grouped = b.Reshape(q, b.Concat(rows, head_dim, axis=0))
    scale = b.float_attribute("scale")
    if options.dtype != ir.DataType.FLOAT:
        scale = b.Cast(scale, to=options.dtype)
    scores = b.Mul(b.MatMul(grouped, b.Transpose(keys, perm=[0, 1, 3, 2])), scale)
    keys_count = b.Shape(keys, start=2, end=3)
    length_1 = b.Unsqueeze(length, b.const([0]))
    scores = b.Reshape(scores, b.Concat(rows, length_1, keys_count, axis=0))
    scores = b.Add(scores, b.Unsqueeze(bias, axis2))
    if options.dtype == ir.DataType.FLOAT:
        weights = b.Softmax(scores, axis=-1)
    else:
        weights = b.Cast(b.Softmax(b.Cast(scores, to=ir.DataType.FLOAT), axis=-1), to=options.dtype)
    weights = b.Reshape(weights, b.Concat(rows, keys_count, axis=0))
    output = b.MatMul(weights, values)
    heads_1 = b.Unsqueeze(heads, b.const([0]))
    output = b.Reshape(output, b.Concat(b.const([0]), heads_1, length_1, head_dim, axis=0))
    output = b.Reshape(b.Transpose(output, perm=[0, 2, 1, 3]), b.const([0, 0, -1]))
    results = (output, present_key, present_value, present_dt, keep)
    return b.function(OPERATOR.name, dict(zip(OPERATOR.outputs, results, strict=True)), options.opset)


def _softplus(b: BodyBuilder, x: ir.Value, options: BodyOptions, keep_wide: bool) -> ir.Value:
    """softplus as torch computes it: log1p(exp(x)), and x itself above 20.

    onnxruntime's CPU Softplus and Log round differently in the last lanes of a row, so equal keys get
    unequal weights and the tie rule breaks. In float64 the result is the correctly rounded one, alike
    in every lane. Where float64 is not to be had, Softplus stands.
    """
    if not options.float64:
        result: ir.Value = b.Softplus(x)
        return result
    wide = x if keep_wide else b.Cast(x, to=ir.DataType.DOUBLE)
    soft = b.Log(b.Add(b.Exp(wide), b.const(1.0, np.float64)))
    soft = b.Where(b.Greater(wide, b.const(20.0, np.float64)), wide, soft)
    result = soft if keep_wide else b.Cast(soft, to=options.dtype)
    return result


def _keep_largest(b: BodyBuilder, ranked: ir.Value, lowest: ir.Value, options: BodyOptions) -> ir.Value:
    """`ranked` where an entry is among its row's keep_window_size largest, else `lowest`.

    Rows no longer than the window keep everything: a branch spares them the sort, where branches are
    to be had.
    """
    window = b.int_attribute("keep_window_size")
    count = b.Squeeze(b.Shape(ranked, start=3, end=4))
    at = len(b.nodes)
    # Cut to the row in a branch too: where shapes are fixed, shape inference looks into every branch.
    k = b.Unsqueeze(b.Min(window, count), b.const([0]))
    _, indices = b.TopK(ranked, k, axis=-1, outputs=2)
    blank = b.ConstantOfShape(b.Shape(ranked), value=ir.tensor(np.zeros(1, np.bool_)))
    chosen = b.ConstantOfShape(b.Shape(indices), value=ir.tensor(np.ones(1, np.bool_)))
    kept: ir.Value = b.Where(b.ScatterElements(blank, indices, chosen, axis=-1), ranked, lowest)
    if not options.branches:
        return kept
    sort = b.nodes[at:]
    sort_branch = b.branch("window_full", sort, kept)
    everything: ir.Value = b.Identity(ranked)
    keep_branch = b.branch("window_open", [b.nodes[-1]], everything)
    for value in (kept, everything):
        value.type = ir.TensorType(options.dtype)
    result: ir.Value = b.If(
        b.Greater(count, window),
        then_branch=sort_branch,
        else_branch=keep_branch,
    )
    return result


OPERATOR = Operator(
    name="DynamicMaskAttention",
    torch_name="doge::dynamic_mask_attention",
    inputs=_INPUTS,
    optional_inputs=("past_dt", "cache_position"),
    integer_inputs=("attention_mask", "cache_position"),
    outputs=("output", "present_key", "present_value", "present_dt", "keep"),
    optional_outputs=("present_dt", "keep"),
    bool_outputs=("keep",),
    integer_outputs=(),
    attributes={
        "num_heads": int,
        "num_kv_heads": int,
        "keep_window_size": int,
        "sliding_window": int,
        "scale": float,
        "epsilon": float,
    },
    body=_body,
)
