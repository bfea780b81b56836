"""The attentions of the generations before transformers' through the table of cases: torch twin, ONNX
function, and a slow oracle in float64 that shares no line with either."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from doge_export.graph.operators import (
    BodyOptions,
    Operator,
    filled_mask_attention,
    head_mask_attention,
    place_mask_attention,
    ratio_mask_attention,
    sign_mask_attention,
)
from doge_export.model import operators as in_torch
from tests.ops.bodies import run_body
from tests.ops.cases import ATTENTION_CASES, AttentionCase, draw
from tests.ops.oracles import visible_keys

Inputs = dict[str, torch.Tensor | None]
Array = npt.NDArray[Any]
CASES = [case for case in ATTENTION_CASES if case.dtype == torch.float32 and not case.sliding]
NOTHING = -np.inf  # in the place of finfo.min; NEVER of what does not take part at all
NEVER = None


@dataclass(frozen=True)
class Kind:
    """`rule`: what each existing key adds to the scores of one query of one head: a number, NOTHING or NEVER,
    by dt [existing keys], the slots that the query sees, and the window."""

    operator: Operator
    run: Callable[..., Any]
    rule: Callable[[Array, list[int], int], list[float | None]]
    repeated: bool = False
    by_place: bool = False
    window: int | None = None  # else the case's
    ratio: float | None = None
    first_tells: bool = False  # one token sees all keys, or none, as the mask of the first place says

    def attributes(self, case: AttentionCase) -> dict[str, Any]:
        given = {"num_heads": case.heads[0], "num_kv_heads": case.heads[1], "scale": case.head_dim**-0.5}
        if "keep_window_size" in self.operator.attributes:
            given["keep_window_size"] = case.window if self.window is None else self.window
        return {name: given[name] for name in self.operator.attributes}


def largest(dt: Array, seen: list[int], window: int) -> list[float | None]:
    chosen = sorted(seen, key=lambda slot: (-dt[slot], slot))[:window]
    return [dt[slot] if slot in chosen else NOTHING for slot in range(len(dt))]


def by_sign(dt: Array, seen: list[int], window: int) -> list[float | None]:
    return [0.0 if slot in seen and not np.float32(dt[slot]) < 1 else NOTHING for slot in range(len(dt))]


def by_place(dt: Array, seen: list[int], window: int) -> list[float | None]:
    return [0.0 if slot in seen and dt[slot] != 0 else NOTHING for slot in range(len(dt))]


def by_rank(ratio: float) -> Callable[[Array, list[int], int], list[float | None]]:
    def rule(dt: Array, seen: list[int], window: int) -> list[float | None]:
        count = int((len(dt) - window) * ratio) if len(dt) > window else 0
        limit = sorted(dt)[count - 1] if count > 0 else -np.inf
        kinds: list[float | None] = []
        for slot in range(len(dt)):
            stays, visible = dt[slot] >= limit, slot in seen
            kinds.append(dt[slot] if stays and visible else NOTHING if stays or visible else NEVER)
        return kinds

    return rule


def filled(ratio: float) -> Callable[[Array, list[int], int], list[float | None]]:
    def rule(dt: Array, seen: list[int], window: int) -> list[float | None]:
        count = int(len(dt) * ratio)
        limit = sorted(dt)[count - 1] if count > 0 else -np.inf
        return [dt[slot] if slot in seen and dt[slot] >= limit else NOTHING for slot in range(len(dt))]

    return rule


_RATIO = in_torch.ratio_mask_attention.ratio_mask_attention
_FILLED = in_torch.filled_mask_attention.filled_mask_attention
_PLACE = in_torch.place_mask_attention.place_mask_attention
_HEAD = in_torch.head_mask_attention.head_mask_attention
_SIGN = in_torch.sign_mask_attention.sign_mask_attention
KINDS = {
    "1": Kind(place_mask_attention.OPERATOR, _PLACE, by_place, by_place=True),
    "3c": Kind(head_mask_attention.OPERATOR, _HEAD, largest),
    "2": Kind(sign_mask_attention.OPERATOR, _SIGN, by_sign, repeated=True),
    "3a": Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(0.3), window=0, ratio=0.3),
    "3a, 0.7": Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(0.7), window=0, ratio=0.7),
    "3a-filled": Kind(filled_mask_attention.OPERATOR, _FILLED, filled(0.3), ratio=0.3, first_tells=True),
    "3a-filled, 0.9": Kind(filled_mask_attention.OPERATOR, _FILLED, filled(0.9), ratio=0.9, first_tells=True),
    "3b": Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(0.5), ratio=0.5),
    "3b, all": Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(1.0), ratio=1.0),
    "off": Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(0.0), window=0, ratio=0.0),
}
everything = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def inputs_of(kind: Kind, case: AttentionCase) -> Inputs:
    """The case's, with a dt for each query head."""
    given = draw(case)
    heads, kv_heads = case.heads
    width = (heads if kind.repeated else kv_heads) * case.head_dim
    rng = torch.Generator().manual_seed(7)
    exact = case.values != "random"
    dt_weight = torch.randn(heads, width, generator=rng) / 4
    if exact:
        dt_weight = torch.randint(-1, 2, (heads, width), generator=rng) / 4
    bias = given["dt_bias"]
    A, past_dt = given["A"], given["past_dt"]
    assert bias is not None and A is not None
    given |= {
        "dt_weight": dt_weight,
        "dt_bias": bias.repeat(heads)[:heads],
        "A": A.repeat(heads)[:heads],
        "past_dt": None if past_dt is None else past_dt.repeat(1, heads, 1)[:, :heads],
        # It ends before the keys do.
        "dynamic_mask": torch.randint(-1, 2, (heads, max(1, case.total - 2)), generator=rng).float(),
        "ratio": None if kind.ratio is None else torch.tensor(kind.ratio, dtype=torch.float64),
    }
    return {name: given[name] for name in kind.operator.input_names}


def oracle(kind: Kind, case: AttentionCase, inputs: Inputs) -> tuple[Array, Array, Array]:
    """output [batch, sequence, heads * head_dim], keep [batch, heads, sequence, slots], dt [batch, heads,
    slots]"""
    x = {name: tensor.double().numpy() for name, tensor in inputs.items() if tensor is not None}
    (heads, kv_heads), dim, group = case.heads, case.head_dim, case.heads[0] // case.heads[1]
    window = kind.attributes(case).get("keep_window_size", 0)
    output = np.zeros((case.batch, case.length, heads * dim))
    keep = np.zeros((case.batch, heads, case.length, case.total), bool)
    dt = np.zeros((case.batch, heads, case.total))
    for row in range(case.batch):
        start = case.position[row] if case.static else case.past
        end = start + case.length
        keys, values = np.zeros((2, end, kv_heads, dim))
        for slot in range(end):
            new = slot - start
            for head in range(kv_heads):
                part = slice(head * dim, (head + 1) * dim)
                if new < 0:
                    keys[slot, head] = x["past_key"][row, head, slot]
                    values[slot, head] = x["past_value"][row, head, slot]
                else:
                    key = x["key"][row, new, part]
                    keys[slot, head] = key if kind.by_place else turned(key, x, row, new)
                    values[slot, head] = x["value"][row, new, part]
            flat = np.repeat(values[slot], group, 0) if kind.repeated else values[slot]
            for head in range(heads):
                if case.static and new < 0:
                    dt[row, head, slot] = x["past_dt"][row, head, slot]
                elif kind.by_place:
                    places = x["dynamic_mask"].shape[1]
                    dt[row, head, slot] = x["dynamic_mask"][head, slot] if slot < places else 1
                else:
                    logit = x["dt_weight"][head] @ flat.reshape(-1) + x["dt_bias"][head]
                    dt[row, head, slot] = np.exp(x["A"][head] * np.logaddexp(0, logit))
        for column in range(case.length):
            seen = visible_keys(case, x["attention_mask"], row, column)
            if kind.first_tells and case.length == 1:
                seen = list(range(end)) if x["attention_mask"][row, 0] else []
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                added = kind.rule(dt[row, head, :end], seen, window)
                query = turned(x["query"][row, column, part], x, row, column)
                chosen = [slot for slot, number in enumerate(added) if number not in (NEVER, NOTHING)]
                keep[row, head, column, chosen] = True
                if chosen:
                    scores = np.array(
                        [query @ keys[slot, head // group] / np.sqrt(dim) + added[slot] for slot in chosen]
                    )
                    weights = np.exp(scores - scores.max())
                else:  # finfo.min absorbs the scores
                    chosen = [slot for slot, number in enumerate(added) if number is not NEVER]
                    weights = np.ones(len(chosen))
                output[row, column, part] = weights / weights.sum() @ values[chosen, head // group]
    return output, keep, dt


def turned(states: Array, x: dict[str, Array], row: int, column: int) -> Array:
    half = len(states) // 2
    pairs = (states[:half] + 1j * states[half:]) * (x["cos"][row, column] + 1j * x["sin"][row, column])
    return np.concatenate([pairs.real, pairs.imag])


@kinds
@everything
def test_twin_and_body_are_what_the_oracle_says(kind: Kind, case: AttentionCase) -> None:
    inputs = inputs_of(kind, case)
    attributes = kind.attributes(case)
    output, keep, dt = oracle(kind, case, inputs)
    before = {name: tensor.clone() for name, tensor in inputs.items() if tensor is not None}
    ran = kind.run(*inputs.values(), *attributes.values())
    twin = dict(zip(kind.operator.output_names, ran, strict=False))
    for name, tensor in before.items():
        assert torch.equal(tensor, inputs[name]), f"the operator wrote into {name}"
    options = BodyOptions(opset=24 if case.static else 23, static=case.static)
    body = run_body(kind.operator, options, inputs, attributes)
    tolerance: dict[str, Any] = {"rtol": 1e-4 if case.dt_bias == 21.0 else 1e-5, "atol": 2e-5}
    ends = [at + case.length for at in case.position] if case.static else [case.total] * case.batch
    written = np.arange(case.total) < np.array(ends)[:, None]
    for given in (twin, body):
        np.testing.assert_allclose(given["output"], output, **tolerance)
        rows = np.broadcast_to(written[:, None], dt.shape)
        np.testing.assert_allclose(np.asarray(given["present_dt"])[rows], dt[rows], **tolerance)
    np.testing.assert_array_equal(body["keep"], keep)
    for name in ("present_key", "present_value"):
        np.testing.assert_allclose(body[name], twin[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 1 / 3, 0.29, 0.999])
def test_the_share_is_that_of_float64(ratio: float) -> None:
    """int(100 * 0.29) is 28, and 29 in float32: the n-th of all keys has to be the n-th that Python says."""
    kind = Kind(ratio_mask_attention.OPERATOR, _RATIO, by_rank(ratio), window=0, ratio=ratio)
    for length in (10, 30, 100):
        case = AttentionCase("", past=length - 1, heads=(1, 1))
        inputs = inputs_of(kind, case)
        body = run_body(kind.operator, BodyOptions(), inputs, kind.attributes(case))
        assert int((~body["keep"]).sum()) == max(int(length * ratio) - 1, 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.by_place])
def test_a_repeated_value_ties_wherever_it_stands(kind: Kind) -> None:
    """Equal keys have equal dt in the body too, so that they stay or go as the rule says."""
    case = AttentionCase("", past=30, length=9, heads=(4, 2))
    inputs = inputs_of(kind, case)
    past = inputs["past_value"]
    assert past is not None
    past[:, :, 17] = past[:, :, 3]
    past[:, :, 29] = past[:, :, 3]
    body = run_body(kind.operator, BodyOptions(), inputs, kind.attributes(case))
    dt = body["present_dt"]
    assert (dt[:, :, 17] == dt[:, :, 3]).all() and (dt[:, :, 29] == dt[:, :, 3]).all()
