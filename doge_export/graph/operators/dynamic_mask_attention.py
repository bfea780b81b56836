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

from doge_export.graph.operators.attention_body import AttentionBody
from doge_export.graph.operators.cached_keys import CACHE_INPUTS, CALL_INPUTS, OUTPUTS, cached_keys_body
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Operator, ports

__all__ = ["OPERATOR"]


def _body(options: BodyOptions) -> ir.Function:
    """Builds the operator of standard operators, for one dtype and cache kind."""
    b = BodyBuilder(OPERATOR.body_inputs(options.static))
    parts = AttentionBody(b, options)
    lowest = parts.lowest
    q, k, v = parts.query(), parts.key(), parts.value()
    cached = cached_keys_body(b, options, parts.length, k, v, parts.key_weight)
    ranked = b.Where(
        b.Unsqueeze(cached.visible, b.const([1])), b.Unsqueeze(cached.dt, b.const([2])), lowest
    )  # [batch, kv_heads, sequence, keys]
    if options.static:
        ranked = b.Where(cached.exists, ranked, b.const(-np.inf, options.numpy))
    bias = parts.keep_largest(ranked)
    if options.static:
        bias = b.Where(cached.exists, bias, b.const(-np.inf, options.numpy))
    keep = b.Greater(bias, lowest)
    output = parts.attend(q, cached.keys, cached.values, bias)
    results = (output, cached.present_key, cached.present_value, cached.dt, keep)
    return b.function(OPERATOR.name, dict(zip(OPERATOR.output_names, results, strict=True)), options.opset)


OPERATOR = Operator(
    name="DynamicMaskAttention",
    torch_name="doge::dynamic_mask_attention",
    inputs=(
        *CALL_INPUTS,
        *ports("q_norm", "k_norm", "dt_weight", "dt_bias", "A"),
        *CACHE_INPUTS,
    ),
    outputs=OUTPUTS,
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
