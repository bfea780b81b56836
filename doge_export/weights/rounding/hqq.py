"""HQQ: round a matrix so that a few large errors are forgiven, by half-quadratic splitting; needs no text.

Source: Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023,
https://mobiusml.github.io/hqq_blog/). Weights have heavy tails, so the error is measured by the sum of
|error|^p with p < 1. Published: the scale stays, and the zero point, a float, is optimized. What is stored
here has no zero point or a whole one, so the *scale* of each block is optimized, by the same two steps: with
the integers fixed, take from the errors what shrinkage says is outlier, and fit the scale to the rest by
least squares; then round again. Errors are counted in steps of the nearest rounding, so that the penalty
means the same everywhere.
"""

import numpy as np

from doge_export.weights.arrays import Matrix
from doge_export.weights.formats import WeightFormat
from doge_export.weights.rounding.round_to_nearest import (
    Grid,
    Quantized,
    block_rows,
    nearest_grid,
    on_grid,
)

__all__ = ["POWER", "hqq"]

POWER = 0.7  # p, as published
_PENALTY, _GROWTH, _ROUNDS = 10.0, 1.01, 20  # beta, kappa and iterations, as published


def hqq(weight: Matrix, form: WeightFormat) -> Quantized:
    """Round `weight` [n, k] to "int8" or "int4"; stored as `quantize` stores it. Of no block is the sum of
    |error|^POWER larger than with rounding to nearest.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    block = form.block_of(weight.shape[1])
    assert block is not None
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    nearest = nearest_grid(blocks, form)
    unit = np.abs(nearest.steps)[..., None]
    best, best_error = nearest._replace(scales=nearest.scales.copy()), _loss(blocks, nearest, form, unit)
    # An int4 has one number more on one side: the largest of a block at 7, not -8, is a start of its own.
    # No others: many starts get the sum lower by clipping what is large, and the model worse (docs).
    for start in (1.0, form.number.lowest / form.number.highest) if form.number.divisor < 0 else (1.0,):
        grid, penalty = nearest.near(nearest.steps * np.float32(start)), _PENALTY
        for _ in range(_ROUNDS):
            error = _loss(blocks, grid, form, unit)
            better = error < best_error
            best.scales[better], best_error[better] = grid.scales[better], error[better]
            fitted = _refit(blocks, grid, form, unit, penalty)
            if (fitted.scales == grid.scales).all():
                break
            grid, penalty = fitted, penalty * _GROWTH
    return on_grid(blocks, best, form)


def _refit(
    blocks: Matrix,
    grid: Grid,
    form: WeightFormat,
    unit: Matrix,
    penalty: float,
) -> Grid:
    """The grid whose scales fit the integers best once the outliers among the errors are taken away."""
    integers = block_rows(blocks, grid, form)
    steps = grid.steps
    errors = blocks - integers * steps[..., None]
    size = np.divide(np.abs(errors), unit, out=np.zeros_like(errors), where=unit > 0)
    shrunk = np.zeros_like(size)  # argmin over x of |x|^p + beta / 2 (x - size)^2, approximately
    np.power(size, POWER - 1, out=shrunk, where=size > 0)
    shrunk = np.maximum(size - shrunk / np.float32(penalty), 0)
    wanted = blocks - np.sign(errors) * shrunk * unit
    above, below = (wanted * integers).sum(-1), np.square(integers).sum(-1)
    fitted: Matrix = np.divide(above, below, out=steps, where=below > 0)
    return grid.near(fitted)


def _loss(
    blocks: Matrix,
    grid: Grid,
    form: WeightFormat,
    unit: Matrix,
) -> Matrix:
    """Sum of |error|^p of each block, errors in units [n, blocks, 1]."""
    errors = np.abs(blocks - block_rows(blocks, grid, form) * grid.steps[..., None])
    steps = np.divide(errors, unit, out=np.zeros_like(errors), where=unit > 0)
    result: Matrix = np.power(steps, np.float32(POWER)).sum(-1)
    return result
