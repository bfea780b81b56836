"""What the attentions of the generations before transformers' share: queries and keys that are rotated and
not normalised, and a mask for each query head.

They differ in one thing, how dt becomes the bias of the scores, which each operator's own file says.

| input | shape | |
|---|---|---|
| query | [batch, sequence, heads * head_dim] | as projected: not yet rotated |
| key, value | [batch, sequence, kv_heads * head_dim] | as projected |
| past_key, past_value | [batch, kv_heads, past, head_dim] | rotated keys; static: [.., slots, head_dim] |
| attention_mask | int64 [batch, past + sequence] | 1 where a real token stands; static: [batch, slots] |
| cos, sin | [batch, sequence, head_dim / 2] | of the new tokens |
| dt_weight, dt_bias | [heads, width], [heads] | a bias of zeros is none |
| A | [heads] | |
| dynamic_mask | [heads, places] | instead of the three before, where dt is by place |
| past_dt | [batch, heads, slots] (optional) | static: dt of the cached positions |
| cache_position | int64 [batch] (optional) | static: the slot of the first new token |

| output | shape | |
|---|---|---|
| output | [batch, sequence, heads * head_dim] | |
| present_key, present_value | [batch, kv_heads, past + sequence, head_dim] | static: the shape of past |
| present_dt | [batch, heads, keys] | |
| keep (optional, ONNX only) | bool [batch, heads, sequence, keys] | the keys whose scores stay |

`width` is kv_heads * head_dim, or heads * head_dim where dt is made of the values repeated for each head. By
place, dt is what `dynamic_mask` says of a key's place in the cache, padding included, and 1 beyond its end;
keys are not rotated then.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators.attention_body import AttentionBody
from doge_export.graph.operators.cached_keys import (
    CACHE_INPUTS,
    CALL_INPUTS,
    OUTPUTS,
    CachedKeys,
    cached_keys_body,
)
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Operator, Port, ports

__all__ = ["HeadBody", "HeadMask", "define"]


class HeadBody(AttentionBody):
    """The body of an attention without norms, with a bias for each query head."""

    def _normalised(self, states: ir.Value, weight: str) -> ir.Value:
        return states

    def _for_scores(self, bias: ir.Value) -> ir.Value:
        b = self._b
        shape = b.Concat(b.const([0]), b.Unsqueeze(self._kv_heads, b.const([0])), b.const([-1]), axis=0)
        shape = b.Concat(shape, b.Shape(bias, start=2, end=4), axis=0)
        result: ir.Value = b.Reshape(bias, shape)
        return result

    def unless(self, masked: ir.Value, visible: ir.Value) -> ir.Value:
        """0 where a query may see the key and it is not `masked` [batch, heads, keys], else finfo.min."""
        b = self._b
        unmasked = b.And(b.Unsqueeze(visible, b.const([1])), b.Unsqueeze(b.Not(masked), b.const([2])))
        result: ir.Value = b.Where(unmasked, b.const(0, self.numpy), self.lowest)
        return result

    def place_weight(self, values: ir.Value) -> ir.Value:
        """dt [batch, heads, n] of the n places that `values` [batch, kv_heads, n, head_dim] take, by
        dynamic_mask: of all the keys, or, with a static cache, of those from cache_position on."""
        b, x, axis0 = self._b, self._b.inputs, self._b.const([0])
        count = b.Squeeze(b.Shape(values, start=2, end=3))
        position = b.Unsqueeze(b.Range(b.const(0), count, b.const(1)), axis0)
        if self._options.static:
            position = b.Add(b.Unsqueeze(x["cache_position"], b.const([1])), position)
        slots = b.Squeeze(b.Shape(x["dynamic_mask"], start=1, end=2))
        dt = b.Gather(x["dynamic_mask"], b.Min(position, b.Sub(slots, b.const(1))), axis=1)
        dt = b.Transpose(dt, perm=[1, 0, 2])
        dt = b.Where(b.Unsqueeze(b.Less(position, slots), b.const([1])), dt, b.const(1, self.numpy))
        ones = b.const([1, 1])
        result: ir.Value = b.Expand(dt, b.Concat(b.Shape(values, start=0, end=1), ones, axis=0))
        return result

    def repeated(self, values: ir.Value) -> ir.Value:
        """[batch, kv_heads, n, head_dim], each as often as it has query heads: [batch, heads, n, head_dim]"""
        b = self._b
        axis0 = b.const([0])
        group = b.Unsqueeze(b.Div(self._heads, self._kv_heads), axis0)
        ones = b.const([1, 1])
        wide = b.Expand(b.Unsqueeze(values, b.const([2])), b.Concat(ones, group, ones, axis=0))
        head_dim = b.Shape(values, start=3, end=4)
        shape = b.Concat(axis0, b.Unsqueeze(self._heads, axis0), b.const([-1]), head_dim, axis=0)
        result: ir.Value = b.Reshape(wide, shape)
        return result


@dataclass(frozen=True)
class HeadMask:
    """How dt becomes the bias [batch, heads, sequence, keys] of the scores: `body`, in standard operators.
    Slots that do not exist are seen to elsewhere.

    `attributes`: integers of its own. `inputs`: of its own, before past_dt. `repeated`: dt is made of the
    values repeated for each query head. `by_place`: of no values, but of the key's place.
    """

    body: Callable[[HeadBody, BodyBuilder, CachedKeys[ir.Value]], ir.Value]
    attributes: tuple[str, ...] = ()
    inputs: tuple[Port, ...] = ()
    repeated: bool = False
    by_place: bool = False


def define(name: str, torch_name: str, mask: HeadMask) -> Operator:
    """The operator with that mask."""
    weights = ports("dynamic_mask") if mask.by_place else ports("dt_weight", "dt_bias", "A")
    operator = Operator(
        name=name,
        torch_name=torch_name,
        inputs=(*CALL_INPUTS, *weights, *mask.inputs, *CACHE_INPUTS),
        outputs=OUTPUTS,
        attributes={
            **dict.fromkeys(("num_heads", "num_kv_heads", *mask.attributes), int),
            "scale": float,
        },
        body=lambda options: _body(operator, mask, options),
    )
    return operator


def _body(operator: Operator, mask: HeadMask, options: BodyOptions) -> ir.Function:
    """Builds the operator of standard operators, for one dtype and cache kind."""
    b = BodyBuilder(operator.body_inputs(options.static))
    parts = HeadBody(b, options)

    def key_weight(values: ir.Value) -> ir.Value:
        if mask.by_place:
            return parts.place_weight(values)
        return parts.key_weight(parts.repeated(values) if mask.repeated else values)

    key = parts.as_projected("key") if mask.by_place else parts.key()
    cached = cached_keys_body(b, options, parts.length, key, parts.value(), key_weight)
    bias = mask.body(parts, b, cached)
    if options.static:
        bias = b.Where(cached.exists, bias, b.const(-np.inf, options.numpy))
    keep = b.Greater(bias, parts.lowest)
    output = parts.attend(parts.query(), cached.keys, cached.values, bias)
    results = (output, cached.present_key, cached.present_value, cached.dt, keep)
    return b.function(operator.name, dict(zip(operator.output_names, results, strict=True)), options.opset)
