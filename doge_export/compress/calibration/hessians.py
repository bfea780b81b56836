"""X^T X of the inputs X of every matrix, from a text that the graph reads."""

__all__ = ["hessians"]

import numpy as np
import numpy.typing as npt

from doge_export.compress.calibration.inputs import MatrixInputs
from doge_export.core.bundle import Bundle
from doge_export.core.progress import Progress, silent
from doge_export.weights import Matrix, embedding_metric


def hessians(bundle: Bundle, ids: npt.NDArray[np.int64], progress: Progress = silent) -> dict[str, Matrix]:
    """Weight's name -> mean of x x^T over all tokens of ids [windows, length], float32 [k, k], of each matrix
    that something is multiplied with; matrices that share an input share the array. The graph runs on
    function bodies. `progress` gets tokens as they are read.
    """
    matrices = MatrixInputs(bundle)
    sums: dict[str, Matrix] = {}
    for input_states in matrices.read(ids):
        for name, states in input_states.items():
            sums[name] = sums.get(name, 0) + states.T @ states
        progress(ids.shape[1], "reading the text")
    means = {name: total / np.float32(ids.size) for name, total in sums.items()}
    by_weight = {weight: means[name] for weight, name in matrices.inputs.items()}
    for weight in matrices.gathered:  # a tied table is an embedding too
        mean = by_weight[weight]
        metric = embedding_metric(matrices.weights, by_weight, len(mean))
        by_weight[weight] = mean + (metric * np.diag(mean).mean()).astype(np.float32)
    return by_weight
