"""BoundedMaskAttention against the operator that keeps everything, on drawn schedules full of ties."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.bounded_mask_attention import OPERATOR
from doge_export.model.operators.bounded_mask_attention import bounded_mask_attention
from doge_export.model.operators.dynamic_mask_attention import dynamic_mask_attention
from doge_export.validate.backends.deterministic_reference import pinned
from tests.ops.bodies import one_node_model, run_model

DIM = 8
PARTS = ("key", "value", "dt", "position")


@dataclass
class Text:
    """A text of `steps` calls: projections of its tokens by call, exact numbers where keys shall tie.

    `values`: "random", "exact" (ties are likely), "equal" (one token, repeated)."""

    steps: tuple[int, ...]
    padding: tuple[int, ...] = (0,)
    heads: tuple[int, int] = (4, 2)
    window: int = 8
    values: str = "exact"
    zero_A: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0
    shared: dict[str, torch.Tensor] = field(init=False)
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        rng = self._rng = torch.Generator().manual_seed(self.seed)
        heads, kv_heads = self.heads
        A = torch.tensor([0.5, -0.25, 1.0, -1.5])[:kv_heads]
        self.shared = {
            "q_norm": 1 + torch.randn(DIM, generator=rng) / 10,
            "k_norm": 1 + torch.randn(DIM, generator=rng) / 10,
            "dt_weight": torch.randint(-1, 2, (kv_heads, kv_heads * DIM), generator=rng).float() / 4,
            "dt_bias": torch.zeros(kv_heads),
            "A": torch.zeros(kv_heads) if self.zero_A else A,
        }
        self.shared = {name: tensor.to(self.dtype) for name, tensor in self.shared.items()}
        numbers = (heads, kv_heads, self.window, DIM**-0.5, 1e-6)
        self.attributes = dict(zip(OPERATOR.attributes, numbers, strict=True))

    def calls(self):
        """Per call: query, key, value, mask of all tokens so far, position_ids, cos, sin."""
        heads, kv_heads = self.heads
        batch, at, rng = len(self.padding), 0, self._rng
        one = torch.randint(-1, 2, (kv_heads * DIM,), generator=rng).float()
        for count in self.steps:
            value = torch.randn(batch, count, kv_heads * DIM, generator=rng)
            if self.values == "exact":
                value = torch.randint(-1, 2, value.shape, generator=rng).float()
            elif self.values == "equal":
                value = one.expand(value.shape)
            angles = torch.randn(batch, count, DIM // 2, generator=rng)
            slots = torch.arange(at + count)
            mask = (slots >= torch.tensor(self.padding)[:, None]).long()
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, at:]
            query = torch.randn(batch, count, heads * DIM, generator=rng)
            key = torch.randn(batch, count, kv_heads * DIM, generator=rng)
            floats = [x.to(self.dtype).contiguous() for x in (query, key, value, angles.cos(), angles.sin())]
            yield *floats[:3], mask, positions.contiguous(), *floats[3:]
            at += count

    def empty(self) -> dict[str, torch.Tensor]:
        shape = (len(self.padding), self.heads[1], 0)
        cache = {part: torch.zeros(*shape, DIM, dtype=self.dtype) for part in ("key", "value")}
        return {**cache, "dt": torch.zeros(shape, dtype=self.dtype), "position": torch.zeros(shape).long()}


def bounded(text: Text, cache: dict[str, torch.Tensor], call) -> dict[str, torch.Tensor]:
    """The operator's inputs by name."""
    query, key, value, mask, positions, cos, sin = call
    return {
        **{"query": query, "key": key, "value": value},
        **{f"past_{part}": cache[part] for part in PARTS},
        "attention_mask": mask[:, -query.shape[1] :].contiguous(),
        **{"position_ids": positions, "cos": cos, "sin": sin},
        **text.shared,
    }


def grown(text: Text, past: tuple[torch.Tensor, torch.Tensor], call):
    query, key, value, mask, _, cos, sin = call
    numbers = dict(text.attributes)
    attributes = [*list(numbers.values())[:3], 0, *list(numbers.values())[3:]]
    return dynamic_mask_attention(
        query, key, value, *past, mask, cos, sin, *text.shared.values(), None, None, *attributes
    )


def best(dt: torch.Tensor, real: torch.Tensor, window: int) -> set[int]:
    """The `window` largest of one head's whole history, ties by the lower position: positions."""
    there = [slot for slot in range(len(dt)) if real[slot]]
    chosen = sorted(there, key=lambda slot: (-float(dt[slot]), slot))[:window]
    return {there.index(slot) for slot in chosen}


@st.composite
def texts(draw: st.DrawFn) -> Text:
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 9, 20]), min_size=2, max_size=14))
    padding = draw(st.sampled_from([(0,), (0, 3), (2, 0, 5), (25,)]))
    return Text(
        tuple(steps),
        padding,
        heads=draw(st.sampled_from([(4, 2), (2, 1), (4, 4), (6, 3)])),
        window=draw(st.integers(1, 16)),
        values=draw(st.sampled_from(["exact", "exact", "equal", "random"])),
        zero_A=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16])),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=150)
@given(text=texts())
def test_what_is_held_is_the_best_of_the_whole_history(text: Text) -> None:
    """At every step, whatever ties: the theorem of docs/explanation/bounded-cache.md, and its rule.
    `pinned`, since torch rounds equal keys by where they stand in a tensor."""
    cache, past = text.empty(), (text.empty()["key"], text.empty()["value"])
    for call in text.calls():
        mask = call[3]
        with pinned():
            expected, *past, dt = grown(text, past, call)
            output, *presents = bounded_mask_attention(
                *bounded(text, cache, call).values(), *text.attributes.values()
            )
        cache = dict(zip(PARTS, presents, strict=True))
        for row, head in np.ndindex(*dt.shape[:2]):
            held = cache["position"][row, head]
            wanted = best(dt[row, head], mask[row], text.window)
            assert set(held[held >= 0].tolist()) == wanted
            assert (held[len(wanted) :] == -1).all(), "empty slots are the last"
        real = mask[:, -output.shape[1] :].bool()
        limit = 1e-5 if text.dtype == torch.float32 else 5e-2
        torch.testing.assert_close(output[real], expected[real], atol=limit, rtol=limit)


TEXTS = {
    "one row": Text((1, 2, 9, 1, 1, 1, 20, 1, 3)),
    "rows, padding": Text((12, 1, 1, 5, 1, 13), (0, 3, 11)),
    "A = 0": Text((5, 1, 1, 1, 9, 1), zero_A=True),
    "one token": Text((5, 1, 1, 1, 9, 1), values="equal"),
    "no ties": Text((5, 9, 1, 1, 1, 1, 30), values="random", heads=(8, 1)),
    "window of one": Text((3, 1, 1, 4), window=1),
    "never full": Text((3, 1, 1, 4), window=50),
    "float16": Text((5, 9, 1, 1, 1, 1, 30), dtype=torch.float16),
}


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("name", TEXTS)
def test_function_body_is_the_twin(name: str, branches: bool) -> None:
    """One model for all calls; the slots it is given in any order, as a kernel leaves them."""
    text = TEXTS[name]
    kinds = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}
    options = BodyOptions(dtype=kinds[text.dtype], branches=branches)
    cache, model = text.empty(), None
    limit = 1e-5 if text.dtype == torch.float32 else 4e-3
    for call in text.calls():
        inputs: dict[str, torch.Tensor | None] = dict(bounded(text, cache, call))
        if model is None:
            model = one_node_model(OPERATOR, options, inputs, text.attributes, symbolic=True)
        got = run_model(model, inputs)
        expected = bounded_mask_attention(*inputs.values(), *text.attributes.values())
        real = inputs["attention_mask"].bool().numpy()
        first = expected[0].float().numpy()[real]
        np.testing.assert_allclose(got["output"][real].astype(np.float32), first, atol=limit, rtol=limit)
        for part, tensor in zip(PARTS, expected[1:], strict=True):
            name = f"present_{part}"
            np.testing.assert_allclose(got[name], tensor.numpy(), atol=limit, rtol=limit, err_msg=name)
        past = expected[4].shape[2]
        assert got["keep"].shape == (
            *expected[4].shape[:2],
            call[0].shape[1],
            cache["dt"].shape[2] + call[0].shape[1],
        )
        last = got["keep"][:, :, -1].sum(-1)
        assert (last <= min(text.window, past)).all()
        order = torch.randperm(past, generator=torch.Generator().manual_seed(past))
        # Empty slots stay the last.
        cache = {}
        for part, tensor in zip(PARTS, expected[1:], strict=True):
            rows = [tensor[row][:, _shuffled(expected[4][row, 0], order)] for row in range(len(tensor))]
            cache[part] = torch.stack(rows)


def _shuffled(position: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    filled = position[order] >= 0
    return torch.cat((order[filled], order[~filled]))


def test_a_query_that_sees_nothing_averages_over_what_is_there() -> None:
    """As with a growing cache, where nothing was dropped yet: a layer of mixing experts would read it."""
    text = Text((4, 2), (6,), values="random")
    cache, past = text.empty(), (text.empty()["key"], text.empty()["value"])
    call = next(iter(text.calls()))
    expected, *_ = grown(text, past, call)
    output, *_ = bounded_mask_attention(*bounded(text, cache, call).values(), *text.attributes.values())
    torch.testing.assert_close(output, expected)
