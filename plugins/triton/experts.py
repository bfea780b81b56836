"""CDMoE in two kernels: which experts serve a token and with what weight, then their rows, read and mixed."""

import triton
import triton.language as tl

__all__ = ["expert_mix", "expert_routing"]


@triton.jit
def _ahead(other, other_index, mine, index):
    """bool [mine, other]: which others come first, by the larger number and then by the lower index."""
    tie = (other[None, :] == mine[:, None]) & (other_index[None, :] < index[:, None])
    return (other[None, :] > mine[:, None]) | tie


@triton.jit
def _best(logits, NUM_KEYS: tl.constexpr, SIDE: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr):
    """The SIDE best of one half's NUM_KEYS logits in order: numbers and where they stood. The rank of a logit
    is the number of those ahead of it."""
    column = tl.arange(0, KEYS)
    inside = column < NUM_KEYS
    row = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
    rank = tl.zeros([KEYS], tl.int32)
    for at in range(0, NUM_KEYS, CHUNK):
        other_column = at + tl.arange(0, CHUNK)
        real = other_column < NUM_KEYS
        other = tl.load(logits + other_column, mask=real, other=0.0).to(tl.float32)
        rank += tl.sum((_ahead(other, other_column, row, column) & real[None, :]).to(tl.int32), 1)
    here = (rank[None, :] == tl.arange(0, SIDE)[:, None]) & inside[None, :]
    return tl.sum(tl.where(here, row[None, :], 0.0), 1), tl.sum(tl.where(here, column[None, :], 0), 1)


@triton.jit
def _pair(number, NUM_KEYS: tl.constexpr, TOP: tl.constexpr, LINES: tl.constexpr):
    """The pairs (i, j) with (i + 1) * (j + 1) <= TOP, row by row: i and j of those with these numbers."""
    i, start = tl.zeros_like(number), tl.zeros_like(number)
    end = 0
    for line in range(LINES):
        end += tl.minimum(TOP // (line + 1), NUM_KEYS)
        i += (number >= end).to(tl.int32)
        start = tl.where(number >= end, end, start)
    # Numbers beyond the last pair are of no account, but must not point outside.
    return tl.minimum(i, LINES - 1), tl.minimum(number - start, LINES - 1)


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
    COUNT: tl.constexpr,
    PAIRS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: tokens. KEYS, SIDE and PAIRS are powers of two: at least NUM_KEYS, min(TOP, NUM_KEYS), COUNT.

    A pair (i, j) of the sorted halves has (i + 1) * (j + 1) - 1 pairs that score no less and stand before it:
    only the COUNT of those with (i + 1) * (j + 1) <= TOP can be among the best TOP. They are ranked by
    counting those ahead, as the logits of a half are: few numbers, and a place for each at once.
    """
    token = tl.program_id(0).to(tl.int64)
    if PER_TOKEN:
        at_x, at_y = 2 * token, 2 * token + 1
    else:
        at_x, at_y = token, tokens + token
    x, index_x = _best(router_logits + at_x * NUM_KEYS, NUM_KEYS, SIDE, KEYS, CHUNK)
    y, index_y = _best(router_logits + at_y * NUM_KEYS, NUM_KEYS, SIDE, KEYS, CHUNK)
    # A sum is rounded as the logits are: pairs that are equal then are ties.
    dtype = router_logits.dtype.element_ty
    number = tl.arange(0, PAIRS)
    i, j = _pair(number, NUM_KEYS, TOP, TOP if TOP < NUM_KEYS else NUM_KEYS)
    score = (tl.gather(x, i, 0) + tl.gather(y, j, 0)).to(dtype).to(tl.float32)
    rank = tl.zeros([PAIRS], tl.int32)
    for at in range(0, COUNT, CHUNK):
        other = at + tl.arange(0, CHUNK)
        ahead = _ahead(tl.gather(score, other, 0), other, score, number) & (other < COUNT)[None, :]
        rank += tl.sum(ahead.to(tl.int32), 1)
    chosen = (number < COUNT) & (rank < TOP)
    expert = tl.gather(index_x, i, 0) * NUM_KEYS + tl.gather(index_y, j, 0)
    score = tl.where(chosen, score, float("-inf"))
    share = tl.exp(score - tl.max(score))
    share = share / tl.sum(share)
    if NORM:
        share = share / tl.sum(share)
    tl.store(indices + token * TOP + rank, expert.to(tl.int64), mask=chosen)
    tl.store(weights + token * TOP + rank, share.to(weights.dtype.element_ty), mask=chosen)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """The functions of doge_export.core.config.ACTIVATIONS."""
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
        index = at + tl.arange(0, BLOCK_K)
        ok = index < TOP
        expert = tl.load(indices + token * TOP + index, mask=ok, other=0)
        products = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        for column_at in range(0, HIDDEN, BLOCK_C):
            column = column_at + tl.arange(0, BLOCK_C)
            x = tl.load(hidden_states + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
            mask = ok[:, None] & (column < HIDDEN)[None, :]
            down = tl.load(down_embed + expert[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
            products += down.to(tl.float32) * x.to(tl.float32)[None, :]
        share = tl.load(weights + token * TOP + index, mask=ok, other=0.0).to(tl.float32)
        share *= _activate(tl.sum(products, 1), ACTIVATION)
        mask = ok[:, None] & inside[None, :]
        up = tl.load(up_embed + expert[:, None] * HIDDEN + out[None, :], mask=mask, other=0.0)
        mixed += tl.sum(up.to(tl.float32) * share[:, None], 0)
    tl.store(output + token * HIDDEN + out, mixed.to(output.dtype.element_ty), mask=inside)
