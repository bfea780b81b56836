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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from doge_export.ops.attention_body import AttentionBody
from doge_export.ops.cached_keys import CachedKeys, cached_keys, cached_keys_body
from doge_export.ops.custom import custom_op
from doge_export.ops.dynamic_mask_attention import attend, key_weights, rotate
from doge_export.ops.function import BodyBuilder
from doge_export.ops.schema import BodyOptions, Operator

__all__ = ["HeadBody", "HeadMask", "define"]

_STATES = ("query", "key", "value", "past_key", "past_value", "attention_mask", "cos", "sin")
_WEIGHTS = ("dt_weight", "dt_bias", "A")
_CACHE = ("past_dt", "cache_position")
_OUTPUTS = ("output", "present_key", "present_value", "present_dt", "keep")


class HeadBody(AttentionBody):
    """Without norms, and with a bias for each query head."""

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
        seen = b.And(b.Unsqueeze(visible, b.const([1])), b.Unsqueeze(b.Not(masked), b.const([2])))
        result: ir.Value = b.Where(seen, b.const(0, self.numpy), self.lowest)
        return result

    def place_weight(self, values: ir.Value) -> ir.Value:
        """dt [batch, heads, n] of the n places that `values` [batch, kv_heads, n, head_dim] take, by
        dynamic_mask: of all the keys, or, with a static cache, of those from cache_position on."""
        b, x, axis0 = self._b, self._b.inputs, self._b.const([0])
        count = b.Squeeze(b.Shape(values, start=2, end=3))
        place = b.Unsqueeze(b.Range(b.const(0), count, b.const(1)), axis0)
        if self._options.static:
            place = b.Add(b.Unsqueeze(x["cache_position"], b.const([1])), place)
        places = b.Squeeze(b.Shape(x["dynamic_mask"], start=1, end=2))
        said = b.Gather(x["dynamic_mask"], b.Min(place, b.Sub(places, b.const(1))), axis=1)
        said = b.Transpose(said, perm=[1, 0, 2])
        dt = b.Where(b.Unsqueeze(b.Less(place, places), b.const([1])), said, b.const(1, self.numpy))
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
    """How dt becomes the bias [batch, heads, sequence, keys] of the scores: in torch, from what there is, the
    operator's other inputs and its attributes by their names, and finfo.min; and in standard operators. Slots
    that do not exist are seen to elsewhere.

    `repeated`: dt is made of the values repeated for each query head. `by_place`: of no values, but of the
    key's place. `inputs`: of its own, before past_dt, float64 scalars.
    """

    bias: Callable[[CachedKeys, Mapping[str, Any], float], torch.Tensor]
    body: Callable[[HeadBody, BodyBuilder, CachedKeys], ir.Value]
    attributes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    repeated: bool = False
    by_place: bool = False


def define(name: str, torch_name: str, mask: HeadMask) -> tuple[Callable[..., Any], Operator]:
    """The operator with that mask: as a function of torch, whose arguments are the inputs and attributes of
    the schema in their order, and what the exporter needs of it."""
    weights = ("dynamic_mask",) if mask.by_place else _WEIGHTS
    inputs = (*_STATES, *weights, *mask.inputs, *_CACHE)
    whole = ("num_heads", "num_kv_heads", *mask.attributes)
    attributes: dict[str, type] = dict.fromkeys(whole, int) | {"scale": float}
    kinds = ["Tensor" if each not in _CACHE else "Tensor?" for each in inputs]
    kinds += [*("int" for _ in whole), "float"]
    names = (*inputs, *attributes)
    listed = ", ".join(f"{kind} {each}" for kind, each in zip(kinds, names, strict=True))

    def run(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return _attention(mask, dict(zip(names, arguments, strict=True)))

    def fake(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return _shapes(dict(zip(names, arguments, strict=True)))

    function = custom_op(torch_name, f"({listed}) -> (Tensor, Tensor, Tensor, Tensor)")(run)
    function.register_fake(fake)
    operator = Operator(
        name=name,
        torch_name=torch_name,
        inputs=inputs,
        optional_inputs=_CACHE,
        integer_inputs=("attention_mask", "cache_position"),
        double_inputs=mask.inputs,
        outputs=_OUTPUTS,
        optional_outputs=("present_dt", "keep"),
        bool_outputs=("keep",),
        attributes=attributes,
        body=lambda options: _body(name, inputs, mask, options),
    )
    return function, operator


def _attention(mask: HeadMask, x: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The obvious twin."""
    batch, length, _ = x["query"].shape
    heads, kv_heads = x["num_heads"], x["num_kv_heads"]
    lowest = torch.finfo(x["query"].dtype).min
    q = rotate(x["query"].view(batch, length, heads, -1).transpose(1, 2), x["cos"], x["sin"])
    k = x["key"].view(batch, length, kv_heads, -1).transpose(1, 2)
    k = k if mask.by_place else rotate(k, x["cos"], x["sin"])
    v = x["value"].view(batch, length, kv_heads, -1).transpose(1, 2)

    def weigh(values: torch.Tensor) -> torch.Tensor:
        if mask.by_place:
            return _by_place(x["dynamic_mask"], values, x["cache_position"])
        if mask.repeated:
            values = values.repeat_interleave(heads // kv_heads, 1)
        return key_weights(values, x["dt_weight"], x["dt_bias"], x["A"])

    past, cache = (x["past_key"], x["past_value"]), (x["past_dt"], x["cache_position"])
    held = cached_keys(k, v, past[0], past[1], x["attention_mask"], cache[0], cache[1], weigh)
    bias = torch.where(held.exists, mask.bias(held, x, lowest), -torch.inf)
    output = attend_heads(q, held, bias, x["scale"])
    return output, held.present_key, held.present_value, held.dt.contiguous()


def _by_place(
    dynamic_mask: torch.Tensor, values: torch.Tensor, cache_position: torch.Tensor | None
) -> torch.Tensor:
    """As HeadBody.place_weight."""
    place, places = torch.arange(values.shape[2])[None], dynamic_mask.shape[1]
    if cache_position is not None:
        place = cache_position[:, None] + place
    said = dynamic_mask[:, place.clamp(max=places - 1)].transpose(0, 1)
    return torch.where(place[:, None] < places, said, 1.0).expand(values.shape[0], -1, -1)


def attend_heads(query: torch.Tensor, held: CachedKeys, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """As `attend`, with bias [batch, heads, sequence, keys]."""
    group = query.shape[1] // held.keys.shape[1]
    return attend(
        query, held.keys.repeat_interleave(group, 1), held.values.repeat_interleave(group, 1), bias, scale
    )


def _shapes(x: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    batch, length, _ = x["query"].shape
    _, kv_heads, past, head_dim = x["past_key"].shape
    total = past + length if x["cache_position"] is None else past
    cache = (batch, kv_heads, total, head_dim)
    return (
        x["query"].new_empty((batch, length, x["num_heads"] * head_dim)),
        x["past_key"].new_empty(cache),
        x["past_value"].new_empty(cache),
        x["query"].new_empty((batch, x["num_heads"], total)),
    )


def _body(name: str, inputs: tuple[str, ...], mask: HeadMask, options: BodyOptions) -> ir.Function:
    """The same in standard operators, for one dtype and cache kind."""
    b = BodyBuilder(inputs if options.static else inputs[: -len(_CACHE)])
    parts = HeadBody(b, options)

    def weigh(values: ir.Value) -> ir.Value:
        if mask.by_place:
            return parts.place_weight(values)
        return parts.key_weight(parts.repeated(values) if mask.repeated else values)

    key = parts.as_projected("key") if mask.by_place else parts.key()
    held = cached_keys_body(b, options, parts.length, key, parts.value(), weigh)
    bias = mask.body(parts, b, held)
    if options.static:
        bias = b.Where(held.exists, bias, b.const(-np.inf, options.numpy))
    keep = b.Greater(bias, parts.lowest)
    output = parts.attend(parts.query(), held.keys, held.values, bias)
    results = (output, held.present_key, held.present_value, held.dt, keep)
    return b.function(name, dict(zip(_OUTPUTS, results, strict=True)), options.opset)
