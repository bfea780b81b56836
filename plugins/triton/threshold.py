"""Which keys a query keeps, as two numbers a row: no sort, no list of indices, no limit on how many.

The `WINDOW`-th largest dt of the keys that a query sees is found bit by bit: dt is not negative, so its
float32 bits order as it does. Among keys that are equal to it the lower position is kept first, and the last
position kept is found in the same way. A key is kept if its bits are above `threshold`, or equal to it and
its position is at most `last`. `last` is -1 for a query that sees no key.

Keys that fit into one block are read once, and searched in registers; more are read again for every bit.
"""

import triton
import triton.language as tl
from doge_export.triton.parts import rank

__all__ = ["LAST", "mask_threshold"]

#: `last` of a row that keeps all keys equal to its threshold.
LAST: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def _last(position, above, ties, WINDOW: tl.constexpr):
    """`last`, where `position` is that of the tie that fills the window, if there are too many ties."""
    position = tl.where(ties > WINDOW - above, position, LAST)
    return tl.where(above + ties > 0, position, -1)


@triton.jit
def _search(ranked, order, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr):
    """`threshold` and `last` [BLOCK_M] of rows [BLOCK_M, BLOCK_N] as `rank` gives them."""
    bits = tl.zeros([BLOCK_M], tl.int32)
    for bit in range(31):
        wanted = bits | (1 << (30 - bit))
        enough = tl.sum((ranked >= wanted[:, None]).to(tl.int32), 1) >= WINDOW
        bits = tl.where(enough, wanted, bits)
    equal = ranked == bits[:, None]
    above = tl.sum((ranked > bits[:, None]).to(tl.int32), 1)
    ties = tl.sum(equal.to(tl.int32), 1)
    # The tie that fills the window stands at the largest position with too few ties before it.
    position = tl.zeros([BLOCK_M], tl.int32)
    if tl.max(above + ties) > WINDOW:
        for bit in range(31):
            wanted = position | (1 << (30 - bit))
            before = tl.sum((equal & (order[None, :] < wanted[:, None])).to(tl.int32), 1)
            position = tl.where(above + before < WINDOW, wanted, position)
    return bits, _last(position, above, ties, WINDOW)


@triton.jit
def _search_blocks(
    dt, key_positions, begin, end, query_slot,
    WINDOW: tl.constexpr, SLIDING: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same for keys that are read block by block, from slot `begin` to `end`."""
    step = tl.arange(0, BLOCK_N)
    bits = tl.zeros([BLOCK_M], tl.int32)
    for bit in range(31):
        wanted = bits | (1 << (30 - bit))
        count = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        for at in range(begin, end, BLOCK_N):
            ranked, _ = rank(dt, key_positions, at + step, at + step < end, query_slot, BOUNDED, SLIDING)
            count += (ranked >= wanted[:, None]).to(tl.int32)
        bits = tl.where(tl.sum(count, 1) >= WINDOW, wanted, bits)
    higher = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    equal = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for at in range(begin, end, BLOCK_N):
        ranked, _ = rank(dt, key_positions, at + step, at + step < end, query_slot, BOUNDED, SLIDING)
        higher += (ranked > bits[:, None]).to(tl.int32)
        equal += (ranked == bits[:, None]).to(tl.int32)
    above, ties = tl.sum(higher, 1), tl.sum(equal, 1)
    position = tl.zeros([BLOCK_M], tl.int32)
    if tl.max(above + ties) > WINDOW:
        for bit in range(31):
            wanted = position | (1 << (30 - bit))
            count = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
            for at in range(begin, end, BLOCK_N):
                ranked, order = rank(
                    dt, key_positions, at + step, at + step < end, query_slot, BOUNDED, SLIDING
                )
                before = (ranked == bits[:, None]) & (order[None, :] < wanted[:, None])
                count += before.to(tl.int32)
            position = tl.where(above + tl.sum(count, 1) < WINDOW, wanted, position)
    return bits, _last(position, above, ties, WINDOW)


@triton.jit
def mask_threshold(
    query,  # [batch, length, ..]: for its length alone
    dt,  # [batch, KV_HEADS, keys]
    key_positions,  # int64: attention_mask [batch, keys], or BOUNDED: [batch, KV_HEADS, keys], -1: none
    first,  # int64 [batch]: the slot of the first new token
    length,
    keys,
    threshold,  # int32 [batch, KV_HEADS, length]
    last,  # int32 [batch, KV_HEADS, length]
    KV_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    SLIDING: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: blocks of BLOCK_M new tokens, KV_HEADS, batch."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    row = batch * KV_HEADS + head
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.load(first + batch).to(tl.int32)
    query_slot = start + token
    end = start + tl.minimum(length, (tl.program_id(0) + 1) * BLOCK_M)
    begin = 0
    if SLIDING > 0:
        begin = tl.maximum(0, start + tl.program_id(0) * BLOCK_M - SLIDING + 1)
    dt += row * keys
    if BOUNDED:
        key_positions += row * keys
    else:
        key_positions += batch * keys
    if end - begin <= BLOCK_N:
        slot = begin + tl.arange(0, BLOCK_N)
        ranked, order = rank(dt, key_positions, slot, slot < end, query_slot, BOUNDED, SLIDING)
        bits, position = _search(ranked, order, WINDOW, BLOCK_M)
    else:
        bits, position = _search_blocks(
            dt, key_positions, begin, end, query_slot, WINDOW, SLIDING, BOUNDED, BLOCK_M, BLOCK_N
        )
    ok = token < length
    tl.store(threshold + row * length + token, bits, mask=ok)
    tl.store(last + row * length + token, position, mask=ok)
