"""Attention over the kept keys: partial results of every split of the keys, then their sum.

Rows of a program are the queries of one kv head: all heads of its group, for several tokens. Keys and values
are read only where some row of the program keeps them. Where there are few tokens the keys are split over
programs (flash decoding); `attention_plugins` says how many.
"""

import triton
import triton.language as tl
from doge_export.triton.parts import causal_mask, is_real, norm_rope, order_of, weight_bits

__all__ = ["combine_splits", "split_attention"]


@triton.jit
def split_attention(
    query,  # [batch, length, HEADS * HEAD_DIM]
    cos,  # [batch, length, HEAD_DIM / 2]
    sin,
    q_norm,  # [HEAD_DIM]
    key,  # [batch, KV_HEADS, keys, HEAD_DIM]
    value,
    dt,  # [batch, KV_HEADS, keys]
    key_positions,  # as of mask_threshold
    first,
    threshold,
    last,
    length,
    keys,
    splits,
    chunk,  # keys a split: a multiple of BLOCK_N
    partial_rows,  # >= length * splits
    partial,  # float32 [batch, HEADS, partial_rows, HEAD_DIM]: row token * splits + split, not normalised
    stats,  # float32 [batch, HEADS, partial_rows, 2]: the largest score, the sum of exp(score - largest)
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SLIDING: tl.constexpr,
    BOUNDED: tl.constexpr,
    SCALE: tl.constexpr,
    EPSILON: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    """Grid: blocks of BLOCK_M rows, batch * KV_HEADS, splits. WIDE_DOT: matrix products take float32, of
    numbers rounded to the tensors' type, since Triton's interpreter multiplies bfloat16 wrongly."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    row = tl.program_id(1).to(tl.int64)
    batch, group = row // KV_HEADS, row % KV_HEADS
    split = tl.program_id(2)
    line = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = line // GROUP, group * GROUP + line % GROUP
    ok = token < length
    start = tl.load(first + batch).to(tl.int32)
    query_slot = start + token

    line_at = batch * length + token
    q1, q2 = norm_rope(
        query, (line_at * HEADS + head) * HEAD_DIM, cos, sin, line_at * (HEAD_DIM // 2), q_norm, ok,
        HEAD_DIM, HALF, EPSILON,
    )  # fmt: skip
    dtype = query.dtype.element_ty
    q1, q2 = q1.to(dtype), q2.to(dtype)
    row_threshold = tl.load(threshold + row * length + token, mask=ok, other=0)
    row_last = tl.load(last + row * length + token, mask=ok, other=0)
    blind = row_last < 0

    # A row that sees no key averages over all that exist, later ones too.
    blind_rows = tl.max((blind & ok).to(tl.int32))
    first_token = tl.program_id(0) * BLOCK_M // GROUP
    last_token = tl.minimum(length - 1, (tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // GROUP)
    exist = start + length
    end = tl.minimum(split * chunk + chunk, tl.where(blind_rows > 0, exist, start + last_token + 1))
    begin = split * chunk
    if SLIDING > 0:
        nearest = tl.where(blind_rows > 0, start, start + first_token) - SLIDING + 1
        begin = tl.maximum(begin, nearest // BLOCK_N * BLOCK_N)

    dt += row * keys
    if BOUNDED:
        key_positions += row * keys
    else:
        key_positions += batch * keys
    half, wide = tl.arange(0, HALF), tl.arange(0, WIDTH)
    in_half, in_head = half < HEAD_DIM // 2, wide < HEAD_DIM
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for at in range(begin, end, BLOCK_N):
        slot = at + tl.arange(0, BLOCK_N)
        inside = slot < exist
        key_position = tl.load(key_positions + slot, mask=inside, other=-1)
        real = inside & is_real(key_position, BOUNDED)
        weight = tl.load(dt + slot, mask=real, other=0.0).to(tl.float32)
        bits = weight_bits(weight)[None, :]
        order = order_of(slot, key_position, BOUNDED)[None, :]
        kept = (bits > row_threshold[:, None]) | (
            (bits == row_threshold[:, None]) & (order <= row_last[:, None])
        )
        kept = kept & causal_mask(slot, query_slot, SLIDING) & real[None, :]
        exists = inside
        if SLIDING > 0:
            exists = exists & (slot > start - SLIDING)
        if BOUNDED:
            exists = exists & (real | (slot >= start))
        kept = tl.where(blind[:, None], exists[None, :], kept) & ok[:, None]
        used = tl.max(kept.to(tl.int32), 0) > 0

        at_key = (row * keys + slot) * HEAD_DIM
        mask = used[:, None] & in_half[None, :]
        k1 = tl.load(key + at_key[:, None] + half[None, :], mask=mask, other=0.0)
        k2 = tl.load(key + at_key[:, None] + HEAD_DIM // 2 + half[None, :], mask=mask, other=0.0)
        v = tl.load(value + at_key[:, None] + wide[None, :], mask=used[:, None] & in_head[None, :], other=0.0)
        if WIDE_DOT:
            scores = tl.dot(q1.to(tl.float32), tl.trans(k1.to(tl.float32)), input_precision="ieee")
            scores += tl.dot(q2.to(tl.float32), tl.trans(k2.to(tl.float32)), input_precision="ieee")
        else:
            scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
            scores += tl.dot(q2, tl.trans(k2), input_precision="ieee")
        scores = tl.where(blind[:, None], 0.0, scores * SCALE + weight[None, :])
        scores = tl.where(kept, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        share = tl.exp(scores - base[:, None])
        alpha = tl.exp(largest - base)
        total = total * alpha + tl.sum(share, 1)
        share = share.to(dtype)
        mixed = mixed * alpha[:, None]
        if WIDE_DOT:
            mixed += tl.dot(share.to(tl.float32), v.to(tl.float32), input_precision="ieee")
        else:
            mixed += tl.dot(share, v, input_precision="ieee")
        largest = new_largest

    index = (batch * HEADS + head) * partial_rows + token * splits + split
    tl.store(partial + index[:, None] * HEAD_DIM + wide[None, :], mixed, mask=ok[:, None] & in_head[None, :])
    tl.store(stats + index * 2, largest, mask=ok)
    tl.store(stats + index * 2 + 1, total, mask=ok)


@triton.jit
def combine_splits(
    query,  # [batch, length, HEADS * HEAD_DIM]: for its length alone, as
    dt,  # [batch, KV_HEADS, keys]
    partial,
    stats,
    length,
    splits,
    partial_rows,
    output,  # [batch, length, HEADS * HEAD_DIM]
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Grid: blocks of BLOCK_M tokens, HEADS, batch."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = token < length
    wide = tl.arange(0, WIDTH)
    mask = ok[:, None] & (wide < HEAD_DIM)[None, :]
    row = (batch * HEADS + head) * partial_rows + token * splits
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for split in range(splits):
        index = row + split
        part_largest = tl.load(stats + index * 2, mask=ok, other=0.0)
        part_total = tl.load(stats + index * 2 + 1, mask=ok, other=1.0)
        part = tl.load(partial + index[:, None] * HEAD_DIM + wide[None, :], mask=mask, other=0.0)
        new_largest = tl.maximum(largest, part_largest)
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        alpha, share = tl.exp(largest - base), tl.exp(part_largest - base)
        total = total * alpha + part_total * share
        mixed = mixed * alpha[:, None] + part * share[:, None]
        largest = new_largest
    result = mixed / total[:, None]
    at = ((batch * length + token) * HEADS + head) * HEAD_DIM
    tl.store(output + at[:, None] + wide[None, :], result.to(output.dtype.element_ty), mask=mask)
