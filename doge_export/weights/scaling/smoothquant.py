"""SmoothQuant: move what makes activations hard to round, their large channels, into the weights.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv 2211.10438: scale of a channel = max|x|^alpha / max|w|^(1 - alpha), over all matrices that read
it. Folded where `folds` allows it, so not for o_proj, nor for a tied head.
"""

from collections.abc import Collection

import numpy as np

from doge_export.weights.arrays import Array, Matrices, Matrix
from doge_export.weights.scaling.folds import apply_fold, folds

__all__ = ["smooth_channels"]


def smooth_channels(
    weights: dict[str, Array],
    sizes: Matrices,
    alpha: float,
    rounded: Collection[str],
) -> dict[str, Matrix]:
    """Fold the scales into `weights`, a checkpoint's tensors by name, in place.

    `sizes`: weight's name -> largest magnitude of each channel of its input [k]. `rounded`: the names of the
    matrices that will be rounded with their input. `alpha` 0 ... 1.

    Returns: weight's name -> what its input is divided by [k].
    """
    divisors = {}
    for fold in folds(weights):
        readers = [name for name in fold.readers if name in rounded and name in sizes]
        if not readers:
            continue
        states = sizes[readers[0]].astype(np.float64)
        largest = np.max([np.abs(weights[name].astype(np.float64)).max(0) for name in readers], 0)
        used = (states > 0) & (largest > 0)
        scales = np.ones(len(states), np.float32)
        scales[used] = states[used] ** alpha / largest[used] ** (1 - alpha)
        apply_fold(weights, fold, scales)
        divisors.update(dict.fromkeys((name for name in fold.readers if name in sizes), scales))
    return divisors
