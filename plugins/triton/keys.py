"""New keys into a cache: normalised, rotated and weighed. One kernel for each kind of cache."""

import triton
import triton.language as tl
from doge_export.triton.parts import key_weight, norm_rope

__all__ = ["append_keys", "stage_keys", "store_keys"]


@triton.jit
def _new_values(value, line, ok, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUES: tl.constexpr):
    """All heads' values of the tokens at `line` [rows] of [.., KV_HEADS * HEAD_DIM]: [rows, VALUES]."""
    column = tl.arange(0, VALUES)
    mask = ok[:, None] & (column < KV_HEADS * HEAD_DIM)[None, :]
    return tl.load(value + line[:, None] * (KV_HEADS * HEAD_DIM) + column[None, :], mask=mask, other=0.0)


@triton.jit
def _put_values(
    present,
    values,
    row,
    slots,
    slot,
    ok,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUES: tl.constexpr,
):
    """[rows, VALUES] to `slot` [rows] of each head of present [batch, KV_HEADS, slots, HEAD_DIM], whose first
    head is `row`."""
    column = tl.arange(0, VALUES)
    mask = ok[:, None] & (column < KV_HEADS * HEAD_DIM)[None, :]
    head, within = column // HEAD_DIM, column % HEAD_DIM
    at = ((row + head)[None, :] * slots + slot[:, None]) * HEAD_DIM + within[None, :]
    tl.store(present + at, values, mask=mask)


@triton.jit
def _put_key(
    present, first, second, row, slots, slot, ok, HEAD_DIM: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """Both halves [rows, HALF] of one head's keys to `slot` [rows]."""
    column = tl.arange(0, HALF)
    mask = ok[:, None] & (column < HEAD_DIM // 2)[None, :]
    at = ((row * slots + slot) * HEAD_DIM)[:, None] + column[None, :]
    dtype = present.dtype.element_ty
    tl.store(present + at, first.to(dtype), mask=mask)
    tl.store(present + at + HEAD_DIM // 2, second.to(dtype), mask=mask)


@triton.jit
def _copy_rows(source, target, at_source, at_target, ok, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of HEAD_DIM numbers, from row `at_source` to row `at_target` [rows]."""
    column = tl.arange(0, WIDTH)
    mask = ok[:, None] & (column < HEAD_DIM)[None, :]
    values = tl.load(source + at_source[:, None] * HEAD_DIM + column[None, :], mask=mask, other=0.0)
    tl.store(target + at_target[:, None] * HEAD_DIM + column[None, :], values, mask=mask)


@triton.jit
def store_keys(
    key, value,  # [batch, length, KV_HEADS * HEAD_DIM]
    past_key, past_value,  # [batch, KV_HEADS, slots, HEAD_DIM], the same memory as present_*
    past_dt,  # [batch, KV_HEADS, slots]
    first,  # int64 [batch]: the slot of the first new token
    cos, sin,  # [batch, length, HEAD_DIM / 2]
    k_norm, dt_weight, dt_bias, A,
    length, slots,
    present_key, present_value, present_dt,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A cache of fixed length, written in place. Grid: blocks of BLOCK_N new tokens, batch."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = token < length
    slot = tl.load(first + batch).to(tl.int32) + token
    line, row = batch * length + token, batch * KV_HEADS
    values = _new_values(value, line, ok, KV_HEADS, HEAD_DIM, VALUES)
    _put_values(present_value, values, row, slots, slot, ok, KV_HEADS, HEAD_DIM, VALUES)
    for head in tl.static_range(KV_HEADS):
        k1, k2 = norm_rope(
            key, (line * KV_HEADS + head) * HEAD_DIM, cos, sin, line * (HEAD_DIM // 2), k_norm, ok,
            HEAD_DIM, HALF, EPSILON,
        )  # fmt: skip
        _put_key(present_key, k1, k2, row + head, slots, slot, ok, HEAD_DIM, HALF)
        dt = key_weight(values, dt_weight, dt_bias, A, head, KV_HEADS * HEAD_DIM, VALUES)
        tl.store(
            present_dt + (row + head) * slots + slot,
            dt.to(tl.float32).to(present_dt.dtype.element_ty),
            mask=ok,
        )


@triton.jit
def append_keys(
    key, value, past_key, past_value, cos, sin, k_norm, dt_weight, dt_bias, A,
    past, length,
    present_key, present_value, present_dt,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A cache that grows: what was, and the new; every key's dt from its values. Grid: blocks of BLOCK_N
    slots, batch."""
    batch = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = past + length
    old, new = slot < past, (slot >= past) & (slot < slots)
    ok = slot < slots
    line, row = batch * length + slot - past, batch * KV_HEADS
    values = _new_values(value, line, new, KV_HEADS, HEAD_DIM, VALUES)
    column = tl.arange(0, VALUES)
    at = ((row + column // HEAD_DIM)[None, :] * past + slot[:, None]) * HEAD_DIM + (column % HEAD_DIM)[
        None, :
    ]
    mask = old[:, None] & (column < KV_HEADS * HEAD_DIM)[None, :]
    values = tl.where(old[:, None], tl.load(past_value + at, mask=mask, other=0.0), values)
    _put_values(present_value, values, row, slots, slot, ok, KV_HEADS, HEAD_DIM, VALUES)
    for head in tl.static_range(KV_HEADS):
        k1, k2 = norm_rope(
            key, (line * KV_HEADS + head) * HEAD_DIM, cos, sin, line * (HEAD_DIM // 2), k_norm, new,
            HEAD_DIM, HALF, EPSILON,
        )  # fmt: skip
        _put_key(present_key, k1, k2, row + head, slots, slot, new, HEAD_DIM, HALF)
        source, target = (row + head) * past + slot, (row + head) * slots + slot
        _copy_rows(past_key, present_key, source, target, old, HEAD_DIM, WIDTH)
        dt = key_weight(values, dt_weight, dt_bias, A, head, KV_HEADS * HEAD_DIM, VALUES)
        tl.store(present_dt + target, dt.to(tl.float32).to(present_dt.dtype.element_ty), mask=ok)


@triton.jit
def stage_keys(
    key, value, past_key, past_value, past_dt,
    past_position,  # int64 [batch, KV_HEADS, past], -1: the slot is empty
    attention_mask, position_ids,  # int64 [batch, length]
    cos, sin, k_norm, dt_weight, dt_bias, A,
    past, length,
    all_key, all_value, all_dt, all_position,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A bounded cache and the new keys after it, with their positions. Grid: blocks of BLOCK_N slots,
    batch."""
    batch = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = past + length
    old, new = slot < past, (slot >= past) & (slot < slots)
    line, row = batch * length + slot - past, batch * KV_HEADS
    values = _new_values(value, line, new, KV_HEADS, HEAD_DIM, VALUES)
    _put_values(all_value, values, row, slots, slot, new, KV_HEADS, HEAD_DIM, VALUES)
    real = tl.load(attention_mask + line, mask=new, other=0) != 0
    position = tl.where(real, tl.load(position_ids + line, mask=new, other=0), -1)
    for head in tl.static_range(KV_HEADS):
        k1, k2 = norm_rope(
            key, (line * KV_HEADS + head) * HEAD_DIM, cos, sin, line * (HEAD_DIM // 2), k_norm, new,
            HEAD_DIM, HALF, EPSILON,
        )  # fmt: skip
        _put_key(all_key, k1, k2, row + head, slots, slot, new, HEAD_DIM, HALF)
        source, target = (row + head) * past + slot, (row + head) * slots + slot
        _copy_rows(past_key, all_key, source, target, old, HEAD_DIM, WIDTH)
        _copy_rows(past_value, all_value, source, target, old, HEAD_DIM, WIDTH)
        dt = key_weight(values, dt_weight, dt_bias, A, head, KV_HEADS * HEAD_DIM, VALUES)
        dtype = all_dt.dtype.element_ty
        tl.store(all_dt + target, dt.to(tl.float32).to(dtype), mask=new)
        tl.store(all_dt + target, tl.load(past_dt + source, mask=old, other=0.0), mask=old)
        tl.store(all_position + target, position, mask=new)
        tl.store(all_position + target, tl.load(past_position + source, mask=old, other=-1), mask=old)
