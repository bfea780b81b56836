"""BoundedMaskAttention as a chain of Triton kernels, on texts, against the operator that keeps everything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.bounded_mask_attention import OPERATOR
from doge_export.validate.backends.deterministic_reference import pinned
from tests.ops import test_bounded_mask_attention as table
from tests.ops.test_bounded_mask_attention import PARTS, Text
from tests.triton._run import LIMITS, TYPES, relative, run_operator

TEXTS = {
    "rows, padding": Text((12, 1, 5, 13), (0, 3, 11)),
    "A = 0": Text((5, 1, 9, 1), zero_A=True),
    "one token": Text((5, 1, 9, 1), values="equal"),
    "no ties": Text((9, 1, 1, 30), values="random", heads=(8, 1)),
    "window of one": Text((3, 1, 4), window=1),
    "never full": Text((3, 1, 4), window=50),
    "more keys than a block": Text((90, 1, 1), (0, 70), window=66, heads=(2, 1)),
    "float16": Text((5, 9, 1), dtype=torch.float16),
    "bfloat16": Text((12, 1, 5), (0, 3, 11), dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", TEXTS)
def test_chain_is_the_operator_that_keeps_everything(name: str) -> None:
    check(TEXTS[name])


def check(text: Text) -> dict[str, float]:
    """The largest error of every output, in all calls."""
    text = replace(text)  # its generator runs out
    errors = dict.fromkeys(("output", *PARTS), 0.0)

    def hold(part: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
        errors[part] = max(errors[part], relative(got, wanted.double().numpy()))
        assert errors[part] < limit, part

    # The operator that keeps everything is itself rounded to half here.
    limit = LIMITS[text.dtype] * (1 if text.dtype == torch.float32 else 2)
    cache, past = text.empty(), (text.empty()["key"], text.empty()["value"])
    for call in text.calls():
        mask = call[3]
        inputs: dict[str, torch.Tensor | None] = dict(table.bounded(text, cache, call))
        with pinned():
            expected, *past, dt = table.grown(text, past, call)
        ran = run_operator(OPERATOR, BodyOptions(TYPES[text.dtype]), inputs, text.attributes, 5)
        got = ran.outputs
        cache = {part: got[f"present_{part}"] for part in PARTS}
        count = call[0].shape[1]
        real = mask[:, -count:].bool()
        hold("output", got["output"][real], expected[real])
        for row, head in np.ndindex(*dt.shape[:2]):
            held = cache["position"][row, head]
            kept = held[held >= 0]
            if text.dtype == torch.float32:
                assert set(kept.tolist()) == table.best(dt[row, head], mask[row], text.window)
                assert len(set(kept.tolist())) == len(kept)
            assert len(held) == min(inputs["past_dt"].shape[2] + count, text.window)  # type: ignore[union-attr]
            assert (held[len(kept) :] == -1).all(), "empty slots are the last"
            slots = mask[row].nonzero()[:, 0][kept]
            for part, everything in zip(("key", "value"), past, strict=True):
                hold(part, cache[part][row, head, : len(kept)], everything[row, head, slots])
            hold("dt", cache["dt"][row, head, : len(kept)], dt[row, head, slots])
    return errors


def test_a_query_that_sees_nothing_averages_over_what_is_there() -> None:
    text = Text((4, 2), (6,), values="random")
    cache, past = text.empty(), (text.empty()["key"], text.empty()["value"])
    call = next(iter(text.calls()))
    expected, *_ = table.grown(text, past, call)
    inputs: dict[str, torch.Tensor | None] = dict(table.bounded(text, cache, call))
    ran = run_operator(OPERATOR, BodyOptions(), inputs, text.attributes, 5)
    assert relative(ran.outputs["output"], expected.double().numpy()) < 1e-5
    assert (ran.outputs["present_position"] == -1).all()
