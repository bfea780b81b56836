"""The judge's own footing: rows that do not depend on their number, ties by position, per-token routing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.validate.backends.deterministic_reference import even_lanes, even_rows, pinned
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens

Export = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(64, 32), (32, 2), (16, 1), (96, 257), (256, 128), (30, 3), (30, 30), (9, 2), (257, 5), (5, 4)],
)
def test_even_rows_gives_equal_rows_equal_results(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    weight, bias, row = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(inputs)
    results = {
        result.numpy().tobytes()
        for count in (1, 2, 3, 5, 15, 16, 17, 33, 100, 257)
        for result in even_rows(row.expand(1, count, -1), weight, bias)[0]
    }
    assert len(results) == 1


def test_even_rows_is_linear() -> None:
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(7, 12), torch.randn(7), torch.randn(3, 5, 12)
    torch.testing.assert_close(even_rows(rows, weight, bias), rows @ weight.T + bias)


def test_even_lanes_gives_equal_elements_equal_results() -> None:
    torch.manual_seed(0)
    for value in torch.linspace(-8, 8, 100).tolist():
        results = {
            result
            for n in (1, 7, 8, 31, 33, 72, 1003)
            for result in even_lanes(torch.full((n,), value)).tolist()
        }
        assert len(results) == 1
    values = torch.randn(3, 5, 7)
    torch.testing.assert_close(even_lanes(values), torch.nn.functional.softplus(values))


def test_pinned_takes_the_lower_position_and_lets_go() -> None:
    functional = torch.nn.functional
    before = (torch.topk, torch.Tensor.topk, functional.linear, functional.softplus)
    ties = torch.ones(3, 40)
    with pinned():
        assert torch.topk(ties, 5, dim=-1, sorted=False).indices.tolist() == [[0, 1, 2, 3, 4]] * 3
        assert ties.topk(5).indices.tolist() == [[0, 1, 2, 3, 4]] * 3
        assert torch.topk(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3).values.tolist() == [3.0, 3.0, 2.0]
    assert (torch.topk, torch.Tensor.topk, functional.linear, functional.softplus) == before


def test_per_token_hook_is_the_reference_token_by_token(exported: Export) -> None:
    checkpoint, _ = exported(is_moe=True)
    prefill = Schedule("prefill", (20,))
    tokens = draw_tokens(prefill, 257, 0)
    at_once = Reference(checkpoint, per_token=True).run(prefill, tokens)
    by_step = Reference(checkpoint).run(Schedule("steps", (1,) * 20), tokens)
    assert np.abs(at_once.logits - by_step.logits).max() <= 1e-5
    for layer in range(2):
        steps = np.concatenate([call[layer] for call in by_step.experts])
        assert (np.sort(at_once.experts[0][layer]) == np.sort(steps)).all()


def test_boundary_counts_ties_and_the_nearest_miss(exported: Export) -> None:
    checkpoint, _ = exported(num_hidden_layers=1)
    reference = Reference(checkpoint)
    schedule = Schedule("prefill", (20,))
    tokens = draw_tokens(schedule, 257, 0)
    tokens.input_ids[0] = np.arange(20) + 3  # no repeats: no ties
    ties = reference.run(schedule, tokens).ties
    assert (ties.rows, ties.tied) == (2 * (20 - 12), 0)
    assert 0 < ties.nearest < 1
    tokens.input_ids[0] = 5
    ties = reference.run(schedule, tokens).ties
    assert (ties.rows, ties.tied) == (16, 16)
    assert ties.nearest == float("inf")
