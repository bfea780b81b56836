"""A bounded cache after a call: the keys that the last query keeps, the others forgotten.

What the last new token's query keeps is what the cache holds from then on: it sees every key there is, and a
key outside the window never returns (docs/explanation/bounded-cache.md).
"""

import triton
import triton.language as tl
from doge_export.triton.parts import weight_bits

__all__ = ["evict_keys"]


@triton.jit
def _held(dt, positions, slot, ok, threshold, last):
    """bool [keys]: which keys at `slot` stay, by the threshold of one row (`mask_threshold`)."""
    position = tl.load(positions + slot, mask=ok, other=-1)
    bits = weight_bits(tl.load(dt + slot, mask=ok, other=0.0))
    kept = (bits > threshold) | ((bits == threshold) & (position.to(tl.int32) <= last))
    return kept & (position >= 0)


@triton.jit
def evict_keys(
    all_key, all_value,  # [batch, KV_HEADS, keys, HEAD_DIM]
    all_dt, all_position,  # [batch, KV_HEADS, keys]
    threshold, last,  # int32 [batch, KV_HEADS, length]
    keys, length,
    slots,  # of the cache: min(keys, window)
    present_key, present_value, present_dt, present_position,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Kept keys close up, in the order they stand in; what is left over is empty and last. Grid: blocks of
    BLOCK_N keys, batch * KV_HEADS."""
    row = tl.program_id(1).to(tl.int64)
    row_threshold = tl.load(threshold + row * length + length - 1)
    row_last = tl.load(last + row * length + length - 1)
    all_dt += row * keys
    all_position += row * keys
    step = tl.arange(0, BLOCK_N)
    mine = tl.program_id(0) * BLOCK_N

    before = tl.zeros([BLOCK_N], tl.int32)
    total = tl.zeros([BLOCK_N], tl.int32)
    for at in range(0, keys, BLOCK_N):
        held = _held(all_dt, all_position, at + step, at + step < keys, row_threshold, row_last).to(tl.int32)
        before += tl.where(at < mine, held, 0)
        total += held
    slot = mine + step
    held = _held(all_dt, all_position, slot, slot < keys, row_threshold, row_last)
    rising = tl.cumsum(held.to(tl.int32), 0)
    target_slot = tl.sum(before) + rising - 1
    source, target = row * keys + slot, row * slots + target_slot

    wide = tl.arange(0, WIDTH)
    mask = held[:, None] & (wide < HEAD_DIM)[None, :]
    at_source, at_target = (
        source[:, None] * HEAD_DIM + wide[None, :],
        target[:, None] * HEAD_DIM + wide[None, :],
    )
    tl.store(present_key + at_target, tl.load(all_key + at_source, mask=mask, other=0.0), mask=mask)
    tl.store(present_value + at_target, tl.load(all_value + at_source, mask=mask, other=0.0), mask=mask)
    tl.store(present_dt + target, tl.load(all_dt + slot, mask=held, other=0.0), mask=held)
    tl.store(present_position + target, tl.load(all_position + slot, mask=held, other=-1), mask=held)

    empty = (slot >= tl.sum(total)) & (slot < slots)
    target = row * slots + slot
    nothing = tl.zeros([BLOCK_N, WIDTH], present_key.dtype.element_ty)
    mask = empty[:, None] & (wide < HEAD_DIM)[None, :]
    at_target = target[:, None] * HEAD_DIM + wide[None, :]
    tl.store(present_key + at_target, nothing, mask=mask)
    tl.store(present_value + at_target, nothing, mask=mask)
    tl.store(present_dt + target, tl.zeros([BLOCK_N], present_dt.dtype.element_ty), mask=empty)
    tl.store(present_position + target, tl.full([BLOCK_N], -1, tl.int64), mask=empty)
