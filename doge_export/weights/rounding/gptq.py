"""GPTQ: round a matrix column by column, and let the columns that are left make up for the error.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. The Hessian is that of the layer's squared output error, X^T X of the inputs X that a
calibration text gives. Columns stay in their order, since blocks of neighbours share a scale; the scales of a
block are searched for when it is its turn, on the weights as they are then.

Published GPTQ rounds every row by itself, which takes an error of one output for as bad as that of another.
`outputs` says how bad they are together: with a metric G of outputs the loss is tr(E H E^T G), whose Hessian
is the Kronecker product of H and G, and so is its Cholesky factor. So within a column the rows go one after
the other too, and those that are left make up for the error as well. What is neither right of a number nor
below it does not wait for it, so that a block is rounded diagonal by diagonal. Without a metric, a few passes
of coordinate descent follow, which gain 3 to 8 % of the loss in int8 and 4 to 10 % in int4.
"""

import numpy as np
import numpy.typing as npt

from doge_export.weights.formats import WeightFormat
from doge_export.weights.rounding.round_to_nearest import (
    Grid,
    Quantized,
    nearest_numbers,
    quantize,
    stored,
)
from doge_export.weights.rounding.scale_search import best_grid

__all__ = ["gptq"]

_DAMPING = 0.01  # of the Hessian's mean diagonal: what the text did not show is not certain
_PASSES = 3  # more gain less than a thousandth
_OUTPUT_DAMPING = 1e-4  # the metric of outputs is not measured

Array = npt.NDArray[np.float64]


def gptq(
    weight: npt.NDArray[np.float32],
    form: WeightFormat,
    hessian: npt.NDArray[np.floating],
    outputs: npt.NDArray[np.floating] | None = None,
) -> Quantized:
    """Round `weight` [n, k] to a format with scales; `hessian` [k, k] of the inputs, `outputs` [n, n] the
    metric of the outputs, None for that of all alike. Stored as `quantize` stores it.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    block = form.block_of(weight.shape[1])
    assert block is not None
    global_scale = quantize(weight, form).global_scale  # refuses what cannot be stored
    rows, width = weight.shape
    left = weight.astype(np.float64)
    whole = _damped(hessian, _DAMPING)
    # Row j says how an error in column j is made up for by those after it.
    upper = _feedback(whole)
    across = None if outputs is None else _feedback(_damped(outputs, _OUTPUT_DAMPING))
    costs = np.diag(whole).astype(np.float32)
    numbers = np.empty((rows, width))  # those stored, less the zeros
    grid = Grid(
        np.empty((rows, width // block), form.scale),
        np.zeros((rows, width // block), np.float32) if form.zeros else None,
        global_scale,
    )
    for number, first in enumerate(range(0, width, block)):
        part = slice(first, first + block)
        own = left[:, part].astype(np.float32)
        block_grid = best_grid(own[:, None], form, costs[None, part], global_scale)
        grid.scales[:, number] = block_grid.scales[:, 0]
        if grid.zeros is not None and block_grid.zeros is not None:
            grid.zeros[:, number] = block_grid.zeros[:, 0]
        step, zero = block_grid.steps[:, 0].astype(np.float64), _zeros(block_grid)[:, 0]
        along = upper[part, part]
        if across is None:
            numbers[:, part], errors = _by_columns(left[:, part], step, zero, form, along)
        else:
            numbers[:, part], errors = _by_diagonals(left[:, part], step, zero, form, along, across)
        left[:, part.stop :] -= errors @ upper[part, part.stop :]
    if across is None:
        _descend(weight.astype(np.float64), numbers, grid, whole, form)
    return stored(numbers + np.repeat(_zeros(grid), block, axis=1), grid, form)


def _descend(weight: Array, numbers: Array, grid: Grid, hessian: Array, form: WeightFormat) -> None:
    """Round each column of `numbers` once more with all others as they are, which never loses: coordinate
    descent, as in QuantEase (arXiv 2309.01885)."""
    block = weight.shape[1] // grid.scales.shape[1]
    steps, zeros = (np.repeat(each, block, axis=1) for each in (grid.steps.astype(np.float64), _zeros(grid)))
    for _ in range(_PASSES):
        slopes = (numbers * steps - weight) @ hessian
        for at in range(weight.shape[1]):
            step = steps[:, at]
            moved = np.divide(slopes[:, at] / hessian[at, at], step, out=np.zeros(len(step)), where=step != 0)
            wanted = nearest_numbers(numbers[:, at] - moved, form.number, zeros[:, at])
            change = (wanted - numbers[:, at]) * step
            if change.any():
                slopes += np.outer(change, hessian[at])
                numbers[:, at] = wanted


def _zeros(grid: Grid) -> Array:
    return np.zeros(grid.scales.shape) if grid.zeros is None else grid.zeros.astype(np.float64)


def _damped(hessian: npt.NDArray[np.floating], share: float) -> Array:
    whole = hessian.astype(np.float64)
    return whole + np.eye(len(whole)) * max(share * float(np.mean(np.diag(whole))), 1e-12)


def _feedback(hessian: Array) -> Array:
    """Upper triangular U with U^T U = H^-1."""
    upper: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return upper


def _by_columns(
    wanted: Array, step: Array, zeros: Array, form: WeightFormat, along: Array
) -> tuple[Array, Array]:
    """The numbers of a block [n, block], and its errors as the columns after it are to make up for them, each
    over its column's own feedback. `along`: the feedback within the block."""
    left, numbers, errors = wanted.copy(), np.empty(wanted.shape), np.empty(wanted.shape)
    for column in range(wanted.shape[1]):
        near = np.divide(left[:, column], step, out=np.zeros(len(step)), where=step != 0)
        numbers[:, column] = near = nearest_numbers(near, form.number, zeros)
        errors[:, column] = (left[:, column] - near * step) / along[column, column]
        left[:, column + 1 :] -= np.outer(errors[:, column], along[column, column + 1 :])
    return numbers, errors


def _by_diagonals(
    wanted: Array, step: Array, zeros: Array, form: WeightFormat, along: Array, across: Array
) -> tuple[Array, Array]:
    """The same where the rows after a number make up for its error too, by the feedback `across`.

    A number's place is reached by the errors left of it, in `errors`, and by those above it, in `above`.
    """
    rows, width = wanted.shape
    numbers, errors = np.zeros(wanted.shape), np.zeros(wanted.shape)
    above, to_column, to_row = np.zeros((width, rows)), along.T.copy(), across.T.copy()
    own = np.diag(across)
    for diagonal in range(rows + width - 1):
        first, last = max(0, diagonal - width + 1), min(rows, diagonal + 1)
        row, column = np.arange(first, last), diagonal - np.arange(first, last)
        # Views, no copies: the columns of a diagonal's rows fall by one each.
        columns = slice(diagonal - first, diagonal - last if diagonal >= last else None, -1)
        from_left = np.einsum("ij,ij->i", errors[first:last], to_column[columns])
        from_above = np.einsum("ij,ij->i", above[columns], to_row[first:last])
        left = wanted[row, column] - from_left - from_above
        steps = step[first:last]
        near = np.divide(left, steps, out=np.zeros(len(left)), where=steps != 0)
        numbers[row, column] = near = nearest_numbers(near, form.number, zeros[first:last])
        off = left - near * steps
        above[column, row] = off / own[first:last]
        errors[row, column] = (from_above + off) / to_column[column, column]
    return numbers, errors
