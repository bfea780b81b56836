"""DynamicMaskAttention in torch; `doge_export.graph.operators.dynamic_mask_attention` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.dynamic_mask_attention import OPERATOR
from doge_export.model.operators.attention_parts import attend, key_weights, query_key_value, select_keys
from doge_export.model.operators.cached_keys import cached_keys
from doge_export.model.operators.custom import implementation

__all__ = ["dynamic_mask_attention"]


def _shapes(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    batch, length, _ = x.query.shape
    _, kv_heads, past, head_dim = x.past_key.shape
    total = past + length if x.cache_position is None else past
    cache = (batch, kv_heads, total, head_dim)
    reach = total
    if x.sliding_window and x.cache_position is None:
        reach = torch.sym_min(past, x.sliding_window - 1) + length  # type: ignore[no-untyped-call]
    return (
        x.query.new_empty((batch, length, x.num_heads * head_dim)),
        x.past_key.new_empty(cache),
        x.past_value.new_empty(cache),
        x.query.new_empty((batch, kv_heads, reach)),
    )


@implementation(OPERATOR, _shapes)
def dynamic_mask_attention(x: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """Computes line by line what the specification says. `sliding_window` 0 means none."""
    lowest = torch.finfo(x.query.dtype).min
    query, key, value = query_key_value(x)

    def dt_of(values: torch.Tensor) -> torch.Tensor:
        return key_weights(values, x.dt_weight, x.dt_bias, x.A)

    cached = cached_keys(x, key, value, dt_of, x.sliding_window)
    ranked = torch.where(cached.visible[:, None], cached.dt[:, :, None], lowest)
    ranked = torch.where(cached.exists, ranked, -torch.inf)
    bias = torch.where(select_keys(ranked, x.keep_window_size), ranked, lowest)
    bias = torch.where(cached.exists, bias, -torch.inf)
    output = attend(query, cached.keys, cached.values, bias, x.scale)
    return output, cached.present_key, cached.present_value, cached.dt.contiguous()
