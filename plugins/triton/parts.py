"""Functions that the attention kernels share: norm and rotation, a key's weight, which keys a query sees.

The functions are Triton's: they run inside a kernel, on tiles.
"""

import triton
import triton.language as tl

__all__ = ["causal_mask", "is_real", "key_weight", "norm_rope", "order_of", "rank", "weight_bits"]


@triton.jit
def norm_rope(
    states,
    offset,
    cos,
    sin,
    angle,
    norm,
    ok,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """RMSNorm and rotation of the states at `offset` [rows], angles at `angle` [rows]: two float32 halves
    [rows, HALF], zero where `ok` [rows] is false."""
    column = tl.arange(0, HALF)
    inside = column < HEAD_DIM // 2
    mask = ok[:, None] & inside[None, :]
    at = offset[:, None] + column[None, :]
    first = tl.load(states + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(states + at + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD_DIM
    scale = 1.0 / tl.sqrt(mean + EPSILON)
    first *= scale[:, None] * tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    second *= (
        scale[:, None]
        * tl.load(norm + HEAD_DIM // 2 + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    )
    turn = angle[:, None] + column[None, :]
    c = tl.load(cos + turn, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + turn, mask=mask, other=0.0).to(tl.float32)
    return first * c - second * s, second * c + first * s


@triton.jit
def key_weight(values, dt_weight, dt_bias, A, head, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """dt of one kv head [rows] from all heads' `values` [rows, WIDTH], of which SIZE are real; in float64.

    The sum of a row depends on nothing but the row, so that equal keys weigh the same wherever they stand.
    """
    column = tl.arange(0, WIDTH)
    weight = tl.load(dt_weight + head * SIZE + column, mask=column < SIZE, other=0.0).to(tl.float64)
    logit = tl.sum(values.to(tl.float64) * weight[None, :], 1) + tl.load(dt_bias + head).to(tl.float64)
    soft = tl.where(logit > 20.0, logit, tl.log(1.0 + tl.exp(tl.minimum(logit, 20.0))))
    return tl.exp(tl.load(A + head).to(tl.float64) * soft)


@triton.jit
def weight_bits(dt):
    """The bits of dt >= 0 as int32, in the same order."""
    return dt.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def is_real(key_position, BOUNDED: tl.constexpr):
    """Whether a slot has a real key, by its attention_mask or, BOUNDED, by its position, -1 where empty."""
    if BOUNDED:
        return key_position >= 0
    else:
        return key_position != 0


@triton.jit
def order_of(slot, key_position, BOUNDED: tl.constexpr):
    """The number that decides among equal weights, int32 [keys]: the lower is kept first."""
    if BOUNDED:
        return key_position.to(tl.int32)
    else:
        return slot


@triton.jit
def causal_mask(slot, query_slot, SLIDING: tl.constexpr):
    """Whether a query may see a key, bool [rows, keys]: by causality and the sliding window (0: none)."""
    visible = slot[None, :] <= query_slot[:, None]
    if SLIDING > 0:
        visible = visible & (slot[None, :] > query_slot[:, None] - SLIDING)
    return visible


@triton.jit
def rank(dt, key_positions, slot, ok, query_slot, BOUNDED: tl.constexpr, SLIDING: tl.constexpr):
    """`weight_bits` [rows, keys] of the keys at `slot` that each query sees, else -1; and `order_of` them."""
    key_position = tl.load(key_positions + slot, mask=ok, other=-1)
    real = ok & is_real(key_position, BOUNDED)
    bits = weight_bits(tl.load(dt + slot, mask=real, other=0.0))
    visible = causal_mask(slot, query_slot, SLIDING) & real[None, :]
    return tl.where(visible, bits[None, :], -1), order_of(slot, key_position, BOUNDED)
