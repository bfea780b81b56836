"""What is arbitrary in the judge, transformers' `DogeForCausalLM`, pinned.

Three things in the reference are not of its mathematics but of its libraries, and each decides between
tied keys (any repeated token ties in layer 0):

- torch.topk leaves the order among ties open. It is replaced by a stable one, the lower position first.
- MKL's sgemm picks its kernel, and with it the rounding, by the number of rows, and other kernels for
  the rows left over: the same token gets values that differ in the last bit between a prefill and a
  decode step, and even within one call. So it does by where a row lies in memory: of rows whose bytes are no
  multiple of 16, every other one rounds differently. Linear layers are therefore given a multiple of 16
  rows and of 16 columns, zeros, which makes every row's result independent of the others
  (tests/validate/test_reference.py).
- torch's softplus rounds differently in the last elements of a tensor, those that fill no vector. It is
  given a multiple of 64 elements.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import torch

from doge_export.model.operators.topk import stable_topk

__all__ = ["even_lanes", "even_rows", "pinned"]

_ROWS, _COLUMNS, _LANES = 16, 16, 64
_linear, _softplus = torch.nn.functional.linear, torch.nn.functional.softplus


def even_rows(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """torch's linear, given a multiple of 16 rows and of 16 columns."""
    flat = input.reshape(-1, input.shape[-1])
    count, width = flat.shape
    if count % _ROWS or width % _COLUMNS:
        more = -width % _COLUMNS
        flat = torch.nn.functional.pad(flat, (0, more, 0, -count % _ROWS))
        weight = torch.nn.functional.pad(weight, (0, more)) if more else weight
    return _linear(flat, weight, bias)[:count].reshape(*input.shape[:-1], -1)


def even_lanes(input: torch.Tensor) -> torch.Tensor:
    """torch's softplus, given a multiple of 64 elements."""
    flat = input.reshape(-1)
    padded = torch.cat((flat, flat.new_zeros(-len(flat) % _LANES)))
    return _softplus(padded)[: len(flat)].reshape(input.shape)


def _topk(values: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not largest:
        raise NotImplementedError("the reference asks for the largest only")
    return torch.return_types.topk(stable_topk(values, k, dim))


@contextlib.contextmanager
def pinned() -> Generator[None]:
    """While this lasts, equal keys have equal weights, and torch takes the one at the lower position."""
    function, method = torch.topk, torch.Tensor.topk
    torch.topk, torch.Tensor.topk = _topk, _topk  # type: ignore[assignment]
    torch.nn.functional.linear = even_rows
    torch.nn.functional.softplus = even_lanes  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.topk, torch.Tensor.topk = function, method  # type: ignore[method-assign]
        torch.nn.functional.linear = _linear
        torch.nn.functional.softplus = _softplus
