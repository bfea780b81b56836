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

from doge_export.ops.attention_body import AttentionBody
from doge_export.ops.cached_keys import cached_keys, cached_keys_body
from doge_export.ops.custom import custom_op
from doge_export.ops.function import BodyBuilder
from doge_export.ops.schema import BodyOptions, Operator
from doge_export.ops.topk import stable_topk

__all__ = [
    "OPERATOR",
    "attend",
    "dynamic_mask_attention",
    "key_weights",
    "normalise",
    "rotate",
    "select_keys",
]


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


def normalise(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm over the last axis, in float32."""
    wide = states.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(states.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [batch, heads, sequence, head_dim], the halves as pairs."""
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """query [batch, heads, sequence, head_dim] over keys and values [batch, kv_heads, keys, head_dim], with
    bias [batch, kv_heads, sequence, keys] -> [batch, sequence, heads * head_dim]."""
    group = query.shape[1] // keys.shape[1]
    scores = query @ keys.repeat_interleave(group, 1).transpose(2, 3) * scale
    scores = scores + bias.repeat_interleave(group, 1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values.repeat_interleave(group, 1)).transpose(1, 2).flatten(2)


@custom_op("doge::dynamic_mask_attention")
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
    q = rotate(normalise(q, q_norm, epsilon).transpose(1, 2), cos, sin)
    k = rotate(normalise(k, k_norm, epsilon).transpose(1, 2), cos, sin)

    def weigh(values: torch.Tensor) -> torch.Tensor:
        return key_weights(values, dt_weight, dt_bias, A)

    held = cached_keys(
        k, v, past_key, past_value, attention_mask, past_dt, cache_position, weigh, sliding_window
    )
    ranked = torch.where(held.visible[:, None], held.dt[:, :, None], lowest)
    ranked = torch.where(held.exists, ranked, -torch.inf)
    bias = torch.where(select_keys(ranked, keep_window_size), ranked, lowest)
    bias = torch.where(held.exists, bias, -torch.inf)
    output = attend(q, held.keys, held.values, bias, scale)
    return output, held.present_key, held.present_value, held.dt.contiguous()


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
    parts = AttentionBody(b, options)
    lowest = parts.lowest
    q, k, v = parts.query(), parts.key(), parts.value()
    held = cached_keys_body(b, options, parts.length, k, v, parts.key_weight)
    ranked = b.Where(
        b.Unsqueeze(held.visible, b.const([1])), b.Unsqueeze(held.dt, b.const([2])), lowest
    )  # [batch, kv_heads, sequence, keys]
    if options.static:
        ranked = b.Where(held.exists, ranked, b.const(-np.inf, options.numpy))
    bias = parts.keep_largest(ranked)
    if options.static:
        bias = b.Where(held.exists, bias, b.const(-np.inf, options.numpy))
    keep = b.Greater(bias, lowest)
    output = parts.attend(q, held.keys, held.values, bias)
    results = (output, held.present_key, held.present_value, held.dt, keep)
    return b.function(OPERATOR.name, dict(zip(OPERATOR.outputs, results, strict=True)), options.opset)


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
