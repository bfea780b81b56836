"""X^T X of the inputs X of every matrix, from a text that the graph reads."""

__all__ = ["hessians"]

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from doge_export.bundle import Bundle
from doge_export.calibrate.inputs import MatrixInputs
from doge_export.quantize import embedding_metric


def hessians(
    bundle: Bundle, ids: npt.NDArray[np.int64], advance: Callable[[int], None] = lambda tokens: None
) -> dict[str, npt.NDArray[np.float32]]:
    """Weight's name -> mean of x x^T over all tokens of ids [windows, length], float32 [k, k], of each matrix
    that something is multiplied with; matrices that share an input share the array. The graph runs on
    function bodies. `advance` is told of tokens as they are read.
    """
    matrices = MatrixInputs(bundle)
    sums: dict[str, npt.NDArray[np.float32]] = {}
    for given in matrices.read(ids):
        for name, states in given.items():
            sums[name] = sums.get(name, 0) + states.T @ states
        advance(ids.shape[1])
    means = {name: total / np.float32(ids.size) for name, total in sums.items()}
    found = {weight: means[name] for weight, name in matrices.inputs.items()}
    for weight in matrices.gathered:  # a tied table is an embedding too
        mean = found[weight]
        metric = embedding_metric(matrices.weights, found, len(mean))
        found[weight] = mean + (metric * np.diag(mean).mean()).astype(np.float32)
    return found
