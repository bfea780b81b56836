"""AWQ: give input channels that carry much a finer grid, by scales that are folded into what comes before.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv
2306.00978. Scales are (size of the channel)^alpha, alpha from a grid, by the squared error of the products
on a calibration text. Here the size is the root of the mean square, the error is exact, from X^T X,
and counted relative to each matrix's output, so that q, k and v have equal say.
"""

from collections.abc import Callable, Mapping

import numpy as np

from doge_export.weights.arrays import Array, Arrays, Matrices, Matrix
from doge_export.weights.formats import WeightFormat
from doge_export.weights.rounding.round_to_nearest import Quantized, dequantize, quantize
from doge_export.weights.scaling.folds import Fold, apply_fold, folds

__all__ = ["scale_channels"]

_GRID = np.linspace(0.05, 1.0, 20)

Round = Callable[[Matrix, WeightFormat, Matrix], Quantized]


def scale_channels(
    weights: dict[str, Array],
    hessians: Matrices,
    format_of: Callable[[str], WeightFormat],
    round_finally: Round,
) -> dict[str, Matrix]:
    """Fold the best scales into `weights`, a checkpoint's tensors by name, in place.

    `hessians`: weight's name -> mean of x x^T [k, k] of its inputs. `format_of` says what a weight is rounded
    to, FULL to nothing. The grid is judged with rounding to nearest; scales stay only where they also gain
    with `round_finally`, which will be used.

    Returns: the Hessians of the scaled inputs.
    """
    scaled_hessians = dict(hessians)
    for fold in folds(weights):
        known = next((hessians[name] for name in fold.readers if name in hessians), None)
        rounded = {name: form for name in fold.readers if (form := format_of(name)).scaled}
        if known is None or not rounded:
            continue
        scales = _best(weights, rounded, known, round_finally)
        if scales is not None:
            apply_fold(weights, fold, scales)
            inverse = (1 / scales).astype(np.float32)
            scaled_hessians.update(
                {name: known * np.outer(inverse, inverse) for name in _known(fold, hessians)}
            )
    return scaled_hessians


def _known(fold: Fold, hessians: Matrices) -> list[str]:
    return [name for name in fold.readers if name in hessians]


def _best(
    weights: Arrays,
    rounded: Mapping[str, WeightFormat],
    hessian: Matrix,
    round_finally: Round,
) -> Matrix | None:
    """Scales [k] for matrices that share an input; None where none are better."""
    size = np.sqrt(np.diag(hessian).astype(np.float64))
    if not (size > 0).any():
        return None
    size = np.maximum(size, size.max() * 1e-4)  # a channel that is always 0 has no size
    matrices = {name: weights[name].astype(np.float32) for name in rounded}
    whole = {name: max(_cost(matrix, hessian), 1e-30) for name, matrix in matrices.items()}

    def loss(scales: Matrix | None, final: bool) -> float:
        total = 0.0
        for name, matrix in matrices.items():
            scaled = matrix if scales is None else matrix * scales
            inputs = hessian if scales is None else hessian / np.outer(scales, scales)
            form = rounded[name]
            quantized = round_finally(scaled, form, inputs) if final else quantize(scaled, form)
            off = matrix - dequantize(quantized) / (1 if scales is None else scales)
            total += _cost(off, hessian) / whole[name]
        return total

    candidates = []
    for alpha in _GRID:
        scales = size**alpha
        candidates.append((scales / np.sqrt(scales.max() * scales.min())).astype(np.float32))
    losses = [loss(scales, final=False) for scales in candidates]
    best = candidates[int(np.argmin(losses))]
    return best if loss(best, final=True) < loss(None, final=True) else None


def _cost(errors: Matrix, hessian: Matrix) -> float:
    return float(((errors @ hessian) * errors).sum(dtype=np.float64))
