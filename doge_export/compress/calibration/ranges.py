"""How far the inputs of the products reach on a text: the ranges that static int8 or float8 has a scale for.

Three published rules, each for one symmetric scale a tensor: `min-max` takes the largest magnitude;
`percentile` the one that 99.99 % of the magnitudes stay below; `entropy` the clipping whose 128 levels have
the smallest KL divergence from the histogram (Migacz, "8-bit Inference with TensorRT", GTC 2017).
onnxruntime's own calibrators are not used: they print to stdout, and their entropy has 128 bins for 128
levels unless told otherwise.
"""

__all__ = ["CALIBRATIONS", "static_ranges"]

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from doge_export.compress.calibration.inputs import MatrixInputs
from doge_export.core.bundle import Bundle
from doge_export.core.progress import Progress, silent
from doge_export.graph.passes.quantize_activations import StaticRanges
from doge_export.weights import FORMATS, Array, Matrix, WeightFormat
from doge_export.weights.scaling.smoothquant import smooth_channels

_BINS, _LEVELS = 4096, 128
_SHARE = 0.9999

Histogram = npt.NDArray[np.int64]


def static_ranges(
    bundle: Bundle,
    weights: dict[str, Array],
    ids: npt.NDArray[np.int64],
    calibration: str,
    smooth: float | None = None,
    keep: Collection[str] = (),
    form: WeightFormat = FORMATS["int8"],
    progress: Progress = silent,
) -> StaticRanges:
    """The ranges of all large products of `bundle`, full and float32, on ids [windows, length].

    `calibration` is a key of CALIBRATIONS. With `smooth`, SmoothQuant's alpha, `weights` are scaled in place,
    and the ranges are those of the scaled inputs. `keep`: weights that stay in float32. `form`: what is
    rounded to, int8 or fp8; entropy counts the steps of int8. The text is read window by window, once for
    min-max and twice otherwise; `progress` gets its tokens.
    """
    matrices = MatrixInputs(bundle)
    inputs = {weight: name for weight, name in matrices.inputs.items() if weight not in keep}
    channels: dict[str, Matrix] = {}
    for input_states in matrices.read(ids):
        for name, states in input_states.items():
            largest = np.abs(states).max(0)
            channels[name] = np.maximum(channels.get(name, largest), largest)
        progress(ids.shape[1], "reading the text")
    divided: dict[str, Matrix] = {}
    if smooth is not None:
        sizes = {weight: channels[name] for weight, name in matrices.inputs.items()}
        scales = smooth_channels(weights, sizes, smooth, inputs)
        divided = {inputs[weight]: scale for weight, scale in scales.items() if weight in inputs}
    tops = {
        name: float((channels[name] / divided.get(name, 1)).max()) for name in sorted(set(inputs.values()))
    }
    if rule := CALIBRATIONS[calibration]:
        counts = dict.fromkeys(tops, np.zeros(_BINS, np.int64))
        for input_states in matrices.read(ids):
            for name, top in tops.items():
                sizes_ = np.abs(input_states[name] / divided.get(name, 1))
                counts[name] = counts[name] + np.histogram(sizes_, _BINS, (0, max(top, 1e-30)))[0]
            progress(ids.shape[1], "reading the text")
        tops = {name: top * rule(counts[name]) / _BINS for name, top in tops.items()}
    return StaticRanges(
        {weight: tops[name] for weight, name in inputs.items()}, form, calibration, smooth, frozenset(keep)
    )


def _percentile(counts: Histogram) -> int:
    """The number of bins that hold that share."""
    return int(np.searchsorted(np.cumsum(counts), _SHARE * counts.sum())) + 1


def _entropy(counts: Histogram) -> int:
    """The number of bins to keep. Bins beyond are clipped to the last; those kept are merged to levels."""
    best, smallest = len(counts), np.inf
    total = counts.sum()
    below = np.concatenate(([0], np.cumsum(counts)))
    for kept in range(_LEVELS, len(counts) + 1, 8):
        clipped = counts[:kept].astype(np.float64)
        edges = np.linspace(0, kept, _LEVELS + 1).round().astype(np.int64)
        level = np.repeat(np.arange(_LEVELS), np.diff(edges))
        filled = clipped > 0
        members = np.bincount(level, filled, _LEVELS)
        sums = np.bincount(level, clipped, _LEVELS)
        spread = np.where(filled, (sums / np.maximum(members, 1))[level], 0)
        clipped[-1] += total - below[kept]
        divergence = _divergence(clipped / total, spread / max(spread.sum(), 1))
        if divergence < smallest:
            best, smallest = kept, divergence
    return best


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """KL(p || q); where q has nothing, it is given a little."""
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())


#: Name -> from a histogram of magnitudes, how many of its bins are kept; None for all.
CALIBRATIONS: dict[str, Callable[[Histogram], int] | None] = {
    "min-max": None,
    "percentile": _percentile,
    "entropy": _entropy,
}
