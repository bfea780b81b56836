"""Round to nearest with the scale that loses least: for each block, of many scales, the one with the smallest
weighted squared error.

The idea is that of llama.cpp's k-quants: the largest number of a block need not be hit exactly if the others
are hit better. Candidates are scales around both that put the largest number at an end of the range, or, with
zero points, ranges around the whole one; the best is refined by least squares for its own integers, and kept
if it gained. `importance` says how much an error of each input column costs: the mean square of what the
matrix is multiplied with.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from doge_export.weights.arrays import Matrix
from doge_export.weights.formats import WeightFormat
from doge_export.weights.rounding.round_to_nearest import (
    Grid,
    Quantized,
    block_rows,
    grid_between,
    nearest_grid,
    on_grid,
)

__all__ = ["best_grid", "search"]

_FACTORS = np.linspace(0.65, 1.1, 28, dtype=np.float32)


def search(
    weight: Matrix, form: WeightFormat, importance: npt.NDArray[np.floating] | None = None
) -> Quantized:
    """Round `weight` [n, k] to a format with scales, by the `importance` [k] of its columns; stored as
    `quantize` stores it.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    block = form.block_of(weight.shape[1])
    assert block is not None
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    costs = np.ones(weight.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    return on_grid(blocks, best_grid(blocks, form, costs.reshape(-1, block)), form)


def best_grid(
    blocks: Matrix,
    form: WeightFormat,
    costs: Matrix,
    global_scale: np.float32 | None = None,
) -> Grid:
    """The best grid for blocks [n, blocks, block] whose columns cost `costs` [blocks, block]; of no block
    worse than that of rounding to nearest. `global_scale`: of the matrix, where the blocks are a part of one
    in two levels.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    nearest = nearest_grid(blocks, form, global_scale)
    zeros = None if nearest.zeros is None else nearest.zeros.copy()
    best = nearest._replace(scales=nearest.scales.copy(), zeros=zeros)
    best_error = _error(blocks, best, form, costs)
    for grid in _candidates(blocks, nearest, form):
        _improve(grid, blocks, form, costs, best, best_error)
    integers = block_rows(blocks, best, form)
    above, below = (costs * blocks * integers).sum(-1), (costs * integers * integers).sum(-1)
    fitted = np.divide(above, below, out=best.steps, where=below > 0)
    _improve(best.near(fitted), blocks, form, costs, best, best_error)
    return best


def _candidates(blocks: Matrix, nearest: Grid, form: WeightFormat) -> Iterator[Grid]:
    if form.zeros:
        lowest, highest = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        for factor in _FACTORS:  # each end by itself: what is far out is so on one side
            for lower, upper in ((factor, factor), (factor, 1), (1, factor)):
                yield grid_between(lowest * np.float32(lower), highest * np.float32(upper), form)
        return
    # The other end of the range: an int4 has one number more on one side.
    ends = {1.0, abs(form.number.lowest) / form.number.highest * -1.0} if form.number.divisor < 0 else {1.0}
    for end in sorted(ends):
        for factor in _FACTORS:
            yield nearest.near(nearest.steps * (end * factor))


def _improve(
    grid: Grid,
    blocks: Matrix,
    form: WeightFormat,
    costs: Matrix,
    best: Grid,
    best_error: Matrix,
) -> None:
    """Take those blocks of `grid` that are better than what there is."""
    error = _error(blocks, grid, form, costs)
    better = error < best_error
    best.scales[better], best_error[better] = grid.scales[better], error[better]
    if best.zeros is not None and grid.zeros is not None:
        best.zeros[better] = grid.zeros[better]


def _error(blocks: Matrix, grid: Grid, form: WeightFormat, costs: Matrix) -> Matrix:
    off = blocks - block_rows(blocks, grid, form) * grid.steps[..., None]
    result: Matrix = (costs * off * off).sum(-1)
    return result
