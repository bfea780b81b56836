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

from doge_export.quantize.round_to_nearest import (
    FORMATS,
    Grid,
    Quantized,
    block_rows,
    choose_block,
    grid_between,
    nearest_grid,
    on_grid,
)

__all__ = ["best_grid", "search"]

_FACTORS = np.linspace(0.65, 1.1, 28, dtype=np.float32)


def search(
    weight: npt.NDArray[np.float32], dtype: str, importance: npt.NDArray[np.floating] | None = None
) -> Quantized:
    """`weight` [n, k] in a type of FORMATS, `importance` [k]; stored as `quantize` stores it.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    block = choose_block(weight.shape[1], dtype)
    assert block is not None
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    costs = np.ones(weight.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    return on_grid(blocks, best_grid(blocks, dtype, costs.reshape(-1, block)), dtype)


def best_grid(
    blocks: npt.NDArray[np.float32],
    dtype: str,
    costs: npt.NDArray[np.float32],
    global_scale: np.float32 | None = None,
) -> Grid:
    """For blocks [n, blocks, block] whose columns cost `costs` [blocks, block]; of no block worse than
    that of rounding to nearest. `global_scale`: of the matrix, where the blocks are a part
    of one in two levels.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    nearest = nearest_grid(blocks, dtype, global_scale)
    zeros = None if nearest.zeros is None else nearest.zeros.copy()
    best = nearest._replace(scales=nearest.scales.copy(), zeros=zeros)
    least = _error(blocks, best, dtype, costs)
    for grid in _candidates(blocks, nearest, dtype):
        _improve(grid, blocks, dtype, costs, best, least)
    integers = block_rows(blocks, best, dtype)
    above, below = (costs * blocks * integers).sum(-1), (costs * integers * integers).sum(-1)
    fitted = np.divide(above, below, out=best.steps, where=below > 0)
    _improve(best.near(fitted), blocks, dtype, costs, best, least)
    return best


def _candidates(blocks: npt.NDArray[np.float32], nearest: Grid, dtype: str) -> Iterator[Grid]:
    form = FORMATS[dtype]
    if form.zeros:
        lowest, highest = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        for factor in _FACTORS:  # each end by itself: what is far out is so on one side
            for lower, upper in ((factor, factor), (factor, 1), (1, factor)):
                yield grid_between(lowest * np.float32(lower), highest * np.float32(upper), dtype)
        return
    # The other end of the range: an int4 has one number more on one side.
    ends = {1.0, abs(form.lowest) / form.highest * -1.0} if form.divisor < 0 else {1.0}
    for end in sorted(ends):
        for factor in _FACTORS:
            yield nearest.near(nearest.steps * (end * factor))


def _improve(
    grid: Grid,
    blocks: npt.NDArray[np.float32],
    dtype: str,
    costs: npt.NDArray[np.float32],
    best: Grid,
    least: npt.NDArray[np.float32],
) -> None:
    """Take those blocks of `grid` that are better than what there is."""
    error = _error(blocks, grid, dtype, costs)
    better = error < least
    best.scales[better], least[better] = grid.scales[better], error[better]
    if best.zeros is not None and grid.zeros is not None:
        best.zeros[better] = grid.zeros[better]


def _error(
    blocks: npt.NDArray[np.float32], grid: Grid, dtype: str, costs: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    off = blocks - block_rows(blocks, grid, dtype) * grid.steps[..., None]
    result: npt.NDArray[np.float32] = (costs * off * off).sum(-1)
    return result
