"""GPTQ: round a matrix column by column, and let the columns that are left make up for the error.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. The Hessian is that of the layer's squared output error, X^T X of the inputs X that a
calibration text gives. Columns stay in their order, since blocks of neighbours share a scale; the scales of a
block are searched for when it is its turn, on the weights as they are then.
"""

import numpy as np
import numpy.typing as npt

from doge_export.quantize.round_to_nearest import (
    FORMATS,
    Grid,
    Quantized,
    choose_block,
    nearest_numbers,
    quantize,
    stored,
)
from doge_export.quantize.scale_search import best_grid

__all__ = ["gptq"]

_DAMPING = 0.01  # of the Hessian's mean diagonal: what the text did not show is not certain


def gptq(weight: npt.NDArray[np.float32], dtype: str, hessian: npt.NDArray[np.floating]) -> Quantized:
    """`weight` [n, k] in a type of FORMATS; `hessian` [k, k]. Stored as `quantize` stores it.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    form, block = FORMATS[dtype], choose_block(weight.shape[1], dtype)
    assert block is not None
    global_scale = quantize(weight, dtype).global_scale  # refuses what cannot be stored
    rows, width = weight.shape
    left = weight.astype(np.float64)
    whole = hessian.astype(np.float64)
    whole = whole + np.eye(width) * max(_DAMPING * float(np.mean(np.diag(whole))), 1e-12)
    # Upper triangular U with U^T U = H^-1: row j says how an error in column j is made up for by those after
    # it.
    upper = np.linalg.cholesky(np.linalg.inv(whole)).T
    costs = np.diag(whole).astype(np.float32)
    values = np.empty((rows, width), np.float32)
    scales = np.empty((rows, width // block), form.scale)
    zeros = np.zeros((rows, width // block), np.float32)
    for number, first in enumerate(range(0, width, block)):
        part = slice(first, first + block)
        own = left[:, part].astype(np.float32)
        grid = best_grid(own[:, None], dtype, costs[None, part], global_scale)
        scales[:, number] = grid.scales[:, 0]
        if grid.zeros is not None:
            zeros[:, number] = grid.zeros[:, 0]
        step, zero = grid.steps[:, 0].astype(np.float64), zeros[:, number]
        errors = np.zeros((rows, block))
        for column in range(block):
            at = first + column
            wanted = left[:, at]
            near = np.divide(wanted, step, out=np.zeros(rows), where=step != 0)
            near = nearest_numbers(near, dtype, zero)
            values[:, at] = near + zero
            errors[:, column] = (wanted - near * step) / upper[at, at]
            left[:, at + 1 : part.stop] -= np.outer(errors[:, column], upper[at, at + 1 : part.stop])
        left[:, part.stop :] -= errors @ upper[part, part.stop :]
    return stored(values, Grid(scales, zeros if form.zeros else None, global_scale), dtype)
