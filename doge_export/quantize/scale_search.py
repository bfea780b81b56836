"""Round to nearest with the scale that loses least: for each block, of many scales, the one with the smallest
weighted squared error.

The idea is that of llama.cpp's k-quants: the largest number of a block need not be hit exactly if the others
are hit better. Candidates are scales around both that put the largest number at an end of the range; the best
is refined by least squares for its own integers, and kept if it gained. `importance` says how much an error
of each input column costs: the mean square of what the matrix is multiplied with.
"""

import numpy as np
import numpy.typing as npt

from doge_export.quantize.round_to_nearest import FORMATS, Quantized, block_rows, choose_block, quantize

__all__ = ["best_scales", "search"]

_FACTORS = np.linspace(0.65, 1.1, 28, dtype=np.float32)


def search(
    weight: npt.NDArray[np.float32], dtype: str, importance: npt.NDArray[np.floating] | None = None
) -> Quantized:
    """`weight` [n, k] in "int8" or "int4", `importance` [k]; stored as `quantize` stores it.

    Raises:
        DogeExportError: a weight is not finite, or so large that float16 has no scale for it.
    """
    block = choose_block(weight.shape[1], dtype)
    assert block is not None
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    costs = np.ones(weight.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    scales = best_scales(blocks, dtype, costs.reshape(-1, block), quantize(weight, dtype).scales)
    form = FORMATS[dtype]
    values = block_rows(blocks, scales, dtype).astype(np.int8).astype(form.element, copy=False)
    return Quantized(values.reshape(weight.shape), scales)


def best_scales(
    blocks: npt.NDArray[np.float32],
    dtype: str,
    costs: npt.NDArray[np.float32],
    nearest: npt.NDArray[np.float16],
) -> npt.NDArray[np.float16]:
    """float16 [n, blocks] for blocks [n, blocks, block] whose columns cost `costs` [blocks, block]; never
    worse than `nearest`, the scales to beat."""
    form = FORMATS[dtype]
    best = nearest.copy()
    least = _error(blocks, best, dtype, costs)
    # The other end of the range: an int4 has one number more on one side.
    ends = {1.0, abs(form.lowest) / form.highest * -1.0} if form.divisor < 0 else {1.0}
    for end in sorted(ends):
        for factor in _FACTORS:
            _improve(
                (nearest.astype(np.float32) * (end * factor)).astype(np.float16),
                blocks,
                dtype,
                costs,
                best,
                least,
            )
    integers = block_rows(blocks, best, dtype)
    above, below = (costs * blocks * integers).sum(-1), (costs * integers * integers).sum(-1)
    fitted = np.divide(above, below, out=best.astype(np.float32), where=below > 0)
    _improve(fitted.astype(np.float16), blocks, dtype, costs, best, least)
    return best


def _improve(
    scales: npt.NDArray[np.float16],
    blocks: npt.NDArray[np.float32],
    dtype: str,
    costs: npt.NDArray[np.float32],
    best: npt.NDArray[np.float16],
    least: npt.NDArray[np.float32],
) -> None:
    """Take those of `scales` that are better than what there is."""
    error = _error(blocks, scales, dtype, costs)
    better = error < least
    best[better], least[better] = scales[better], error[better]


def _error(
    blocks: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float16],
    dtype: str,
    costs: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    off = blocks - block_rows(blocks, scales, dtype) * scales.astype(np.float32)[..., None]
    result: npt.NDArray[np.float32] = (costs * off * off).sum(-1)
    return result
