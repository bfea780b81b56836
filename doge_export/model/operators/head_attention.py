"""What the attentions of the generations before transformers' share, in torch.

`doge_export.graph.operators.head_attention` specifies their inputs and outputs.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from doge_export.graph.operators import Operator
from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.head_attention import HeadMask
from doge_export.model.operators.attention_parts import attend, key_weights, rotate
from doge_export.model.operators.cached_keys import cached_keys
from doge_export.model.operators.custom import implementation

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

__all__ = ["head_attention"]

#: From the cache, the operator's arguments and finfo.min to the bias [batch, heads, sequence, keys] of the
#: scores. Slots that do not exist are seen to elsewhere.
Bias = Callable[[CachedKeys[torch.Tensor], SimpleNamespace, float], torch.Tensor]


def head_attention(operator: Operator, mask: HeadMask, bias: Bias) -> "CustomOpDef":
    """The torch implementation of an operator with that mask."""

    def attention(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
        batch, length, _ = x.query.shape
        lowest = torch.finfo(x.query.dtype).min
        query = rotate(x.query.view(batch, length, x.num_heads, -1).transpose(1, 2), x.cos, x.sin)
        key = x.key.view(batch, length, x.num_kv_heads, -1).transpose(1, 2)
        key = key if mask.by_place else rotate(key, x.cos, x.sin)
        value = x.value.view(batch, length, x.num_kv_heads, -1).transpose(1, 2)
        cached = cached_keys(x, key, value, lambda values: _key_weights(mask, x, values))
        masked = torch.where(cached.exists, bias(cached, x, lowest), -torch.inf)
        output = _attend(query, cached, masked, x.scale)
        return output, cached.present_key, cached.present_value, cached.dt.contiguous()

    return implementation(operator, _shapes)(attention)


def _key_weights(mask: HeadMask, x: SimpleNamespace, values: torch.Tensor) -> torch.Tensor:
    """dt [batch, heads, n] of values [batch, kv_heads, n, head_dim]."""
    if mask.by_place:
        return _by_place(x.dynamic_mask, values, x.cache_position)
    if mask.repeated:
        values = values.repeat_interleave(x.num_heads // x.num_kv_heads, 1)
    return key_weights(values, x.dt_weight, x.dt_bias, x.A)


def _by_place(
    dynamic_mask: torch.Tensor, values: torch.Tensor, cache_position: torch.Tensor | None
) -> torch.Tensor:
    """dt [batch, heads, n] of the n places that `values` [batch, kv_heads, n, head_dim] take: of all the
    keys, or, with a static cache, of those from cache_position on."""
    position, slots = torch.arange(values.shape[2])[None], dynamic_mask.shape[1]
    if cache_position is not None:
        position = cache_position[:, None] + position
    dt = dynamic_mask[:, position.clamp(max=slots - 1)].transpose(0, 1)
    return torch.where(position[:, None] < slots, dt, 1.0).expand(values.shape[0], -1, -1)


def _attend(
    query: torch.Tensor, cached: CachedKeys[torch.Tensor], bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """As `attend`, with bias [batch, heads, sequence, keys]."""
    group = query.shape[1] // cached.keys.shape[1]
    keys, values = (each.repeat_interleave(group, 1) for each in (cached.keys, cached.values))
    return attend(query, keys, values, bias, scale)


def _shapes(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    batch, length, _ = x.query.shape
    _, kv_heads, past, head_dim = x.past_key.shape
    total = past + length if x.cache_position is None else past
    cache = (batch, kv_heads, total, head_dim)
    return (
        x.query.new_empty((batch, length, x.num_heads * head_dim)),
        x.past_key.new_empty(cache),
        x.past_value.new_empty(cache),
        x.query.new_empty((batch, x.num_heads, total)),
    )
