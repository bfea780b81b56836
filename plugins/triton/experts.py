"""CDMoE in two kernels: which experts serve a token and with what weight, then their rows, read and mixed."""

import triton
import triton.language as tl

__all__ = ["expert_mix", "expert_routing"]


@triton.jit
def _sortable(scores):
    """float32 as int32 of the same order, -0 as 0: ties are those of the numbers."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _keyed(scores, place):
    """int64 that sorts by score, then by the lower place."""
    return (_sortable(scores).to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def _score(key):
    bits = (key >> 32).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _best(logits, NUM_KEYS: tl.constexpr, SIDE: tl.constexpr, KEYS: tl.constexpr):
    """The SIDE best of one half's NUM_KEYS logits, in order: int64 keys as of `_keyed`."""
    column = tl.arange(0, KEYS)
    inside = column < NUM_KEYS
    row = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
    keyed = tl.where(inside, _keyed(row, column), -(2**63))
    return tl.topk(keyed, SIDE)


@triton.jit
def expert_routing(
    router_logits,  # [tokens, 2 * NUM_KEYS]
    tokens,
    indices,  # int64 [tokens, TOP]
    weights,  # [tokens, TOP]
    NUM_KEYS: tl.constexpr,
    TOP: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    NORM: tl.constexpr,
    KEYS: tl.constexpr,
    SIDE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Grid: tokens. KEYS, SIDE and PLACES are powers of two: at least NUM_KEYS, min(TOP, NUM_KEYS), TOP.

    A pair (i, j) of the sorted halves has (i + 1) * (j + 1) - 1 pairs that score no less and stand before it:
    only those with (i + 1) * (j + 1) <= TOP can be among the best TOP.
    """
    token = tl.program_id(0).to(tl.int64)
    if PER_TOKEN:
        at_x, at_y = 2 * token, 2 * token + 1
    else:
        at_x, at_y = token, tokens + token
    x = _best(router_logits + at_x * NUM_KEYS, NUM_KEYS, SIDE, KEYS)
    y = _best(router_logits + at_y * NUM_KEYS, NUM_KEYS, SIDE, KEYS)
    place = tl.arange(0, SIDE)
    i, j = place[:, None], place[None, :]
    # The sum is rounded as the logits are: pairs that are equal then are ties.
    sums = (_score(x)[:, None] + _score(y)[None, :]).to(router_logits.dtype.element_ty).to(tl.float32)
    possible = ((i + 1) * (j + 1) <= TOP) & (i < NUM_KEYS) & (j < NUM_KEYS)
    keyed = tl.where(possible, _keyed(sums, i * SIDE + j), -(2**63))
    best = tl.topk(tl.reshape(keyed, [SIDE * SIDE]), PLACES)

    pair = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
    column = tl.arange(0, PLACES)
    chosen = column < TOP
    pair = tl.where(chosen, pair, 0)
    index_x = 0x7FFFFFFF - (x & 0x7FFFFFFF).to(tl.int32)
    index_y = 0x7FFFFFFF - (y & 0x7FFFFFFF).to(tl.int32)
    expert = tl.gather(index_x, pair // SIDE, 0) * NUM_KEYS + tl.gather(index_y, pair % SIDE, 0)
    score = tl.where(chosen, _score(best), float("-inf"))
    share = tl.exp(score - tl.max(score))
    share = share / tl.sum(share)
    if NORM:
        share = share / tl.sum(share)
    tl.store(indices + token * TOP + column, expert.to(tl.int64), mask=chosen)
    tl.store(weights + token * TOP + column, share.to(weights.dtype.element_ty), mask=chosen)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """The functions of doge_export.config.ACTIVATIONS."""
    if ACTIVATION == "silu" or ACTIVATION == "swish":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_new" or ACTIVATION == "gelu_pytorch_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-2.0 * inner))
    elif ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    elif ACTIVATION == "relu2":
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(ACTIVATION == "tanh")
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def expert_mix(
    hidden_states,  # [tokens, HIDDEN]
    indices,  # int64 [tokens, TOP]
    weights,  # [tokens, TOP]
    down_embed,  # [experts, HIDDEN]
    up_embed,
    output,  # [tokens, HIDDEN]
    HIDDEN: tl.constexpr,
    TOP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """sum over the experts of act(x . down) * weight * up. Grid: tokens, blocks of BLOCK_O outputs.

    Experts are read BLOCK_K at a time, BLOCK_C columns at a time; every block of outputs computes a token's
    activations anew."""
    token = tl.program_id(0).to(tl.int64)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = out < HIDDEN
    mixed = tl.zeros([BLOCK_O], tl.float32)
    for at in range(0, TOP, BLOCK_K):
        place = at + tl.arange(0, BLOCK_K)
        ok = place < TOP
        expert = tl.load(indices + token * TOP + place, mask=ok, other=0)
        products = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        for column_at in range(0, HIDDEN, BLOCK_C):
            column = column_at + tl.arange(0, BLOCK_C)
            x = tl.load(hidden_states + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
            mask = ok[:, None] & (column < HIDDEN)[None, :]
            down = tl.load(down_embed + expert[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
            products += down.to(tl.float32) * x.to(tl.float32)[None, :]
        share = tl.load(weights + token * TOP + place, mask=ok, other=0.0).to(tl.float32)
        share *= _activate(tl.sum(products, 1), ACTIVATION)
        mask = ok[:, None] & inside[None, :]
        up = tl.load(up_embed + expert[:, None] * HIDDEN + out[None, :], mask=mask, other=0.0)
        mixed += tl.sum(up.to(tl.float32) * share[:, None], 0)
    tl.store(output + token * HIDDEN + out, mixed.to(output.dtype.element_ty), mask=inside)
