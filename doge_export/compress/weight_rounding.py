"""The weights of a bundle in full precision on their way to fewer bits: scaled, rounded, tuned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.core.progress import Progress, silent
from doge_export.export.options import ExportOptions
from doge_export.weights import (
    HALF,
    Array,
    Arrays,
    Matrix,
    Quantized,
    WeightFormat,
    nearest,
    output_metrics,
    scale_channels,
    static_format,
    stored_format,
)

if TYPE_CHECKING:
    from doge_export.graph.passes.quantize_activations import StaticRanges
    from doge_export.graph.passes.quantize_weights import Round

__all__ = ["Ids", "WeightRounding", "calibration_text", "tuned"]

#: Tokens [windows, length].
Ids = npt.NDArray[np.int64]


class WeightRounding:
    """The `weights` of a bundle in full precision on their way to what `options` say, and `inputs`: weight's
    name -> mean of x x^T [k, k], of those that are known."""

    def __init__(
        self,
        source: Bundle,
        options: ExportOptions,
        weights: dict[str, Array],
        inputs: dict[str, Matrix],
        progress: Progress,
    ) -> None:
        self.weights, self._full = weights, dict(weights)
        self._source, self._options, self._inputs, self._progress = source, options, inputs, progress
        self._tied = source.config.tie_word_embeddings

    def scale_channels(self) -> None:
        """Fold the method's scales into the weights, if it has any."""
        if self._options.method.scales_channels:
            self._progress(0, "scaling channels")
            method = self._options.method
            self._inputs = scale_channels(self.weights, self._inputs, self._format_of, method.round)

    def rounding(self) -> "Round":
        """The function that rounds each matrix as the options say."""
        metrics = output_metrics(self.weights, self._inputs)

        def round_with(name: str, weight: Matrix, form: WeightFormat) -> Quantized:
            self._progress(0, f"rounding {name.removesuffix('.weight')}")
            method = self._options.method_of(name, self._tied)
            return method.round(weight, form, self._inputs.get(name), metrics.get(name))

        return round_with

    def tune(self, text: str) -> "Round":
        """What rounds each matrix, once scales and norms have learned from the first four fifths of `text`:
        the norms are among the weights then."""
        round_with = self.rounding()
        quantized = {
            name: round_with(name, weight.astype(np.float32), form)
            for name, weight in self.weights.items()
            if (form := self._format_of(name)).scaled
        }
        learned, self.weights = tuned(
            self._source, self._options, self._full, self.weights, quantized, text, self._progress
        )
        return learned

    def ranges(
        self, static: WeightFormat, windows: Ids, calibration: str | None, smooth: float | None
    ) -> "StaticRanges":
        """How far the inputs of products reach on ids [windows, length]; with `smooth`, large channels are
        moved into the weights."""
        from doge_export.compress.calibration import static_ranges

        stored = self._options.stored
        keep = {name for name in self.weights if static_format(name, stored, self._tied) is None}
        rule = calibration or ("min-max" if static.number.floating else "percentile")
        return static_ranges(
            self._source,
            self.weights,
            windows,
            rule,
            smooth,
            keep,
            static,
            self._progress,
        )

    def _format_of(self, name: str) -> WeightFormat:
        return stored_format(name, self.weights[name].shape, self._options.stored, self._tied)


def tuned(
    source: Bundle,
    options: ExportOptions,
    full: Arrays,
    weights: Arrays,
    quantized: Mapping[str, Quantized],
    text: str,
    progress: Progress = silent,
) -> "tuple[Round, dict[str, Array]]":
    """The function that gives each rounded matrix, and all tensors, once `quantized`, what `weights` are
    rounded to, was brought nearer to the checkpoint `full` on the first four fifths of the text
    (doge_export.compress.distillation)."""
    from doge_export.compress.calibration import windows
    from doge_export.compress.distillation import TUNING, tune

    tied, stored = source.config.tie_word_embeddings, dict(weights)
    for name, weight in weights.items():
        if stored_format(name, weight.shape, options.stored, tied) == HALF:
            stored[name] = nearest(weight, HALF)
    ids = windows(source, calibration_text(text), TUNING)
    learned, floats = tune(
        source.config,
        full,
        stored,
        quantized,
        ids,
        routing=options.routing,
        progress=progress,
    )
    return lambda name, weight, form: learned[name], {**weights, **floats}


def calibration_text(text: str) -> str:
    """The part of the text that calibrates: all but the last fifth, which is kept back to judge by."""
    from doge_export.compress.mixed_precision import parts_of

    return "".join(parts_of(text)[:2])
