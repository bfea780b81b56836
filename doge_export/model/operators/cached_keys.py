"""What every attention does with its cache of growing or static size, in torch."""

from collections.abc import Callable
from types import SimpleNamespace

import torch

from doge_export.graph.operators.cached_keys import CachedKeys

__all__ = ["cached_keys"]


def cached_keys(
    x: SimpleNamespace,
    key: torch.Tensor,
    value: torch.Tensor,
    dt_of: Callable[[torch.Tensor], torch.Tensor],
    sliding_window: int = 0,
) -> CachedKeys[torch.Tensor]:
    """Puts key and value [batch, kv_heads, sequence, head_dim] of the new tokens into the cache of the
    operator's arguments `x`; `dt_of` gives the dt of values, and `sliding_window` 0 means none."""
    if x.cache_position is None:
        return _growing(x, key, value, dt_of, sliding_window)
    return _static(x, key, value, dt_of, sliding_window)


def _growing(
    x: SimpleNamespace,
    key: torch.Tensor,
    value: torch.Tensor,
    dt_of: Callable[[torch.Tensor], torch.Tensor],
    sliding_window: int,
) -> CachedKeys[torch.Tensor]:
    length, past = key.shape[2], x.past_key.shape[2]
    present_key, present_value = torch.cat((x.past_key, key), 2), torch.cat((x.past_value, value), 2)
    # The reference's sliding cache forgets what no later query can see, and so must a row
    # whose keys are all masked: it averages over the keys that are there.
    start = max(0, past - sliding_window + 1) if sliding_window else 0
    keys, values = present_key[:, :, start:], present_value[:, :, start:]
    query_slot = torch.arange(past, past + length)[None]
    key_slot = torch.arange(start, past + length)
    visible = _visible(x.attention_mask[:, start:], query_slot, key_slot, sliding_window)
    exists = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    count = torch.tensor([[[past + length - start]]])
    return CachedKeys(keys, values, dt_of(values), present_key, present_value, visible, exists, count)


def _static(
    x: SimpleNamespace,
    key: torch.Tensor,
    value: torch.Tensor,
    dt_of: Callable[[torch.Tensor], torch.Tensor],
    sliding_window: int,
) -> CachedKeys[torch.Tensor]:
    length, position = key.shape[2], x.cache_position[:, None]
    query_slot = position + torch.arange(length)
    index = query_slot[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[-1])
    keys, values = x.past_key.scatter(2, index, key), x.past_value.scatter(2, index, value)
    new_dt = dt_of(value)
    dt = x.past_dt.scatter(2, query_slot[:, None].expand(-1, new_dt.shape[1], -1), new_dt)
    key_slot = torch.arange(x.past_key.shape[2])
    visible = _visible(x.attention_mask, query_slot, key_slot, sliding_window)
    count = (position + length)[:, None]
    exists = (key_slot < count)[:, None]
    if sliding_window:
        exists = exists & (key_slot > position - sliding_window)[:, None, None]
    return CachedKeys(keys, values, dt, keys, values, visible, exists, count)


def _visible(
    attention_mask: torch.Tensor, query_slot: torch.Tensor, key_slot: torch.Tensor, sliding_window: int
) -> torch.Tensor:
    """Which keys a query may see: bool [1 or batch, sequence, keys]."""
    visible = (key_slot <= query_slot[..., None]) & (attention_mask[:, None] != 0)
    if sliding_window:
        visible = visible & (key_slot > query_slot[..., None] - sliding_window)
    return visible
