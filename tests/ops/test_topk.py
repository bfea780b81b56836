"""The tie rule, held to torch's stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from doge_export.model.operators.topk import stable_topk

EDGES = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.finfo(torch.float32).min, 1e-45, -1e-45]


def _slow(values: torch.Tensor, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
    return ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def _same(values: torch.Tensor, k: int, dim: int = -1) -> None:
    for one, other in zip(stable_topk(values, k, dim), _slow(values, k, dim), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.sampled_from(EDGES) | st.floats(width=16), min_size=1, max_size=40), st.data())
def test_is_a_stable_sort(entries: list[float], data: st.DataObject) -> None:
    _same(torch.tensor(entries), data.draw(st.integers(0, len(entries))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_of_any_type_along_any_axis(dtype: torch.dtype, dim: int) -> None:
    values = torch.randn(5, 300, 70, generator=torch.Generator().manual_seed(0)).mul(9).round().to(dtype)
    for k in (1, values.shape[dim] - 1, values.shape[dim]):
        _same(values, k, dim)


def test_of_nothing() -> None:
    _same(torch.empty(0, 4), 2)
    _same(torch.empty(3, 0), 0)


def test_of_numbers_that_are_none() -> None:
    _same(torch.tensor([[1.0, torch.nan, 3.0, -torch.nan, torch.inf, 3.0]] * 2), 4)


def test_has_the_slope_of_what_it_takes() -> None:
    values = torch.tensor([[3.0, 5.0, 5.0, 1.0]], requires_grad=True)
    (stable_topk(values, 2)[0] * torch.tensor([2.0, 7.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None and values.grad.tolist() == [[0.0, 2.0, 7.0, 0.0]]
