"""AWQ: give input channels that carry much a finer grid, by scales that are folded into what comes before.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv
2306.00978. Scales are (size of the channel)^alpha, alpha from a grid, by the squared error of the products
on a calibration text. Here the size is the root of the mean square, the error is exact, from X^T X,
and counted relative to each matrix's output, so that q, k and v have equal say.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.quantize.folds import Fold, apply_fold, folds
from doge_export.quantize.round_to_nearest import Quantized, dequantize, quantize

__all__ = ["scale_channels"]

_GRID = np.linspace(0.05, 1.0, 20)

Hessians = dict[str, npt.NDArray[np.float32]]
Round = Callable[[npt.NDArray[np.float32], str, npt.NDArray[np.float32]], Quantized]


def scale_channels(
    weights: dict[str, npt.NDArray[Any]],
    hessians: Mapping[str, npt.NDArray[np.float32]],
    dtype_of: Callable[[str], str | None],
    round_finally: Round,
) -> Hessians:
    """Fold the best scales into `weights`, a checkpoint's tensors by name, in place.

    `hessians`: weight's name -> mean of x x^T [k, k] of its inputs. `dtype_of` says what a weight is rounded
    to, None to nothing. The grid is judged with rounding to nearest; scales stay only where they also gain
    with `round_finally`, which will be used.

    Returns: the Hessians of the scaled inputs.
    """
    found = dict(hessians)
    for fold in folds(weights):
        known = next((hessians[name] for name in fold.readers if name in hessians), None)
        rounded = {name: dtype for name in fold.readers if (dtype := dtype_of(name)) is not None}
        if known is None or not rounded:
            continue
        scales = _best(weights, rounded, known, round_finally)
        if scales is not None:
            apply_fold(weights, fold, scales)
            inverse = (1 / scales).astype(np.float32)
            found.update({name: known * np.outer(inverse, inverse) for name in _known(fold, hessians)})
    return found


def _known(fold: Fold, hessians: Mapping[str, Any]) -> list[str]:
    return [name for name in fold.readers if name in hessians]


def _best(
    weights: Mapping[str, npt.NDArray[Any]],
    rounded: Mapping[str, str],
    hessian: npt.NDArray[np.float32],
    round_finally: Round,
) -> npt.NDArray[np.float32] | None:
    """Scales [k] for matrices that share an input; None where none are better."""
    size = np.sqrt(np.diag(hessian).astype(np.float64))
    if not (size > 0).any():
        return None
    size = np.maximum(size, size.max() * 1e-4)  # a channel that is always 0 has no size
    matrices = {name: weights[name].astype(np.float32) for name in rounded}
    whole = {name: max(_cost(matrix, hessian), 1e-30) for name, matrix in matrices.items()}

    def loss(scales: npt.NDArray[np.float32] | None, final: bool) -> float:
        total = 0.0
        for name, matrix in matrices.items():
            scaled = matrix if scales is None else matrix * scales
            inputs = hessian if scales is None else hessian / np.outer(scales, scales)
            dtype = rounded[name]
            made = round_finally(scaled, dtype, inputs) if final else quantize(scaled, dtype)
            off = matrix - dequantize(made) / (1 if scales is None else scales)
            total += _cost(off, hessian) / whole[name]
        return total

    candidates = []
    for alpha in _GRID:
        scales = size**alpha
        candidates.append((scales / np.sqrt(scales.max() * scales.min())).astype(np.float32))
    losses = [loss(scales, final=False) for scales in candidates]
    best = candidates[int(np.argmin(losses))]
    return best if loss(best, final=True) < loss(None, final=True) else None


def _cost(errors: npt.NDArray[np.float32], hessian: npt.NDArray[np.float32]) -> float:
    return float(((errors @ hessian) * errors).sum(dtype=np.float64))
