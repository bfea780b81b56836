"""BoundedMaskAttention in torch; `doge_export.graph.operators.bounded_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.bounded_mask_attention import OPERATOR
from doge_export.model.operators.attention_parts import attend, key_weights, query_key_value, select_keys
from doge_export.model.operators.custom import implementation
from doge_export.model.operators.topk import stable_topk

__all__ = ["bounded_mask_attention"]

_LAST = torch.iinfo(torch.int64).max


def _shapes(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    batch, length, _ = x.query.shape
    _, kv_heads, slots, head_dim = x.past_key.shape
    count = torch.sym_min(slots + length, x.keep_window_size)  # type: ignore[no-untyped-call]
    cache = (batch, kv_heads, count)
    return (
        x.query.new_empty((batch, length, x.num_heads * head_dim)),
        x.past_key.new_empty((*cache, head_dim)),
        x.past_value.new_empty((*cache, head_dim)),
        x.past_dt.new_empty(cache),
        x.past_position.new_empty(cache),
    )


@implementation(OPERATOR, _shapes)
def bounded_mask_attention(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """Computes line by line what the specification says."""
    length, slots = x.query.shape[1], x.past_dt.shape[2]
    lowest = torch.finfo(x.query.dtype).min
    query, key, value = query_key_value(x)
    keys, values = torch.cat((x.past_key, key), 2), torch.cat((x.past_value, value), 2)
    dt = torch.cat((x.past_dt, key_weights(value, x.dt_weight, x.dt_bias, x.A)), 2)
    new_position = torch.where(x.attention_mask != 0, x.position_ids, -1)
    position = torch.cat((x.past_position, new_position[:, None].expand(-1, x.num_kv_heads, -1)), 2)
    is_real = position >= 0
    order = torch.argsort(torch.where(is_real, position, _LAST), dim=-1, stable=True)

    key_slot, query_slot = torch.arange(slots + length), slots + torch.arange(length)
    visible = is_real[:, :, None] & (key_slot <= query_slot[:, None])
    exists = (is_real | (key_slot >= slots))[:, :, None]
    ranked = torch.where(visible, dt[:, :, None], lowest)
    ranked = torch.where(exists, ranked, -torch.inf)
    by_position = order[:, :, None].expand_as(ranked)
    keep = torch.zeros_like(ranked, dtype=torch.bool)
    keep.scatter_(-1, by_position, select_keys(ranked.gather(-1, by_position), x.keep_window_size))
    bias = torch.where(keep, ranked, lowest)
    bias = torch.where(exists, bias, -torch.inf)
    output = attend(query, keys, values, bias, x.scale)

    count = min(slots + length, x.keep_window_size)
    best = stable_topk(torch.where(is_real, dt, -torch.inf).gather(-1, order), count)[1]
    chosen = order.gather(-1, torch.sort(best, dim=-1).values)
    rows = chosen[..., None].expand(-1, -1, -1, keys.shape[-1])
    return (
        output,
        keys.gather(2, rows),
        values.gather(2, rows),
        dt.gather(2, chosen),
        position.gather(2, chosen),
    )
