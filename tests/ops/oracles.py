"""The operators once more, as slow loops in numpy's float64 that share no line with the product."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.ops.cases import AttentionCase, RoutingCase, as_numpy

__all__ = ["Attended", "attention_oracle", "routing_oracle", "visible_keys"]

Array = npt.NDArray[Any]


class Attended:
    """What the oracle says: `output` [batch, sequence, heads * head_dim], `keep` [batch, kv_heads,
    sequence, slots] over all slots, `key`, `value` and `dt` by slot."""

    def __init__(self, output: Array, keep: Array, key: Array, value: Array, dt: Array) -> None:
        self.output, self.keep, self.key, self.value, self.dt = output, keep, key, value, dt


def visible_keys(case: AttentionCase, mask: Array, row: int, column: int) -> list[int]:
    """The slots that the query `column` of `row` may see, in order."""
    at = (case.position[row] if case.static else case.past) + column
    first = max(0, at - case.sliding + 1) if case.sliding else 0
    return [slot for slot in range(first, at + 1) if mask[row, slot]]


def _turned(states: Array, weight: Array, cos: Array, sin: Array) -> Array:
    """RMSNorm and rotation of one head's [head_dim] state, the pairs as complex numbers."""
    states = states / np.sqrt(np.mean(states**2) + 1e-6) * weight
    half = len(states) // 2
    pairs = (states[:half] + 1j * states[half:]) * (cos + 1j * sin)
    return np.concatenate([pairs.real, pairs.imag])


def attention_oracle(
    case: AttentionCase, inputs: dict[str, torch.Tensor | None], weights: Array | None = None
) -> Attended:
    """`weights` [batch, kv_heads, slots]: dt as a program stored it, to rank and to add; `dt` of the result
    is the exact one all the same."""
    x = {name: tensor.double().numpy() for name, tensor in inputs.items() if tensor is not None}
    heads, kv_heads, dim = *case.heads, case.head_dim
    output = np.zeros((case.batch, case.length, heads * dim))
    slots = case.total
    keep = np.zeros((case.batch, kv_heads, case.length, slots), bool)
    key, value = np.zeros((2, case.batch, kv_heads, slots, dim))
    dt = np.zeros((case.batch, kv_heads, slots))
    for row in range(case.batch):
        start = case.position[row] if case.static else case.past
        end = start + case.length
        old = x["past_key"].shape[2]
        key[row, :, :old], value[row, :, :old] = x["past_key"][row], x["past_value"][row]
        if case.static:
            dt[row] = x["past_dt"][row]
        for column in range(case.length):
            cos, sin = x["cos"][row, column], x["sin"][row, column]
            for head in range(kv_heads):
                part = slice(head * dim, (head + 1) * dim)
                key[row, head, start + column] = _turned(x["key"][row, column, part], x["k_norm"], cos, sin)
                value[row, head, start + column] = x["value"][row, column, part]
        for slot in range(start if case.static else 0, end):
            flat = value[row, :, slot].reshape(-1)
            for head in range(kv_heads):
                logit = x["dt_weight"][head] @ flat + (x["dt_bias"][head] if "dt_bias" in x else 0)
                dt[row, head, slot] = np.exp(x["A"][head] * np.logaddexp(0, logit))
    exact, dt = dt, dt if weights is None else weights
    for row in range(case.batch):
        start = case.position[row] if case.static else case.past
        end = start + case.length
        # A row that sees nothing averages over the keys that are there: with a sliding window and a
        # cache that grows, those that the first of the new tokens can still reach.
        present = range(end)
        if case.sliding:
            present = range(max(0, start - case.sliding + 1), end)
        for column in range(case.length):
            seen = visible_keys(case, x["attention_mask"], row, column)
            cos, sin = x["cos"][row, column], x["sin"][row, column]
            for head in range(heads):
                group = head // (heads // kv_heads)
                chosen = sorted(seen, key=lambda slot: (-dt[row, group, slot], slot))[: case.window]
                keep[row, group, column, chosen] = True
                part = slice(head * dim, (head + 1) * dim)
                if not chosen:
                    output[row, column, part] = np.mean([value[row, group, slot] for slot in present], 0)
                    continue
                query = _turned(x["query"][row, column, part], x["q_norm"], cos, sin)
                scores = np.array(
                    [query @ key[row, group, slot] / np.sqrt(dim) + dt[row, group, slot] for slot in chosen]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                output[row, column, part] = sum(
                    weight * value[row, group, slot] for weight, slot in zip(weights, chosen, strict=True)
                )
    return Attended(output, keep, key, value, exact)


def routing_oracle(case: RoutingCase, logits: torch.Tensor) -> tuple[Array, Array]:
    rows = as_numpy(logits).reshape(-1, 2 * case.num_keys)
    tokens = len(rows)
    flat = rows.reshape(-1, case.num_keys)
    indices = np.zeros((tokens, case.k), np.int64)
    weights = np.zeros((tokens, case.k))
    for token in range(tokens):
        first, second = (2 * token, 2 * token + 1) if case.per_token else (token, tokens + token)
        x, y = flat[first], flat[second]
        order_x = sorted(range(case.num_keys), key=lambda i: (-x[i], i))
        order_y = sorted(range(case.num_keys), key=lambda j: (-y[j], j))
        pairs = [(x[i] + y[j], i * case.num_keys + j) for i in order_x for j in order_y]
        best = sorted(pairs, key=lambda pair: -pair[0])[: case.k]  # a stable sort
        scores = np.array([score for score, _ in best], np.float64)
        shares = np.exp(scores - scores.max())
        weights[token] = shares / shares.sum()
        indices[token] = [expert for _, expert in best]
    return indices, weights
