"""A bundle in full precision -> one with fewer bits, and what that cost on a text."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from doge_export.compress.weight_rounding import Ids, WeightRounding, calibration_text
from doge_export.core.bundle import CANONICAL, Bundle, check_output, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.generations.decision import Decision
from doge_export.core.progress import AnyProgress, Progress, reporting, silent
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import Exported, need_torch
from doge_export.export.sidecars import copy_sidecars
from doge_export.export.write_bundle import TracedModel, write_bundle
from doge_export.graph.canonical import DTYPES, CanonicalGraph
from doge_export.weights import (
    METHODS,
    Array,
    Arrays,
    Matrices,
    Matrix,
    check_method,
    parse_scheme,
)

if TYPE_CHECKING:
    from doge_export.compress.calibration import Divergence
    from doge_export.graph.passes.quantize_activations import StaticRanges
    from doge_export.graph.passes.quantize_weights import Round

__all__ = [
    "Requantized",
    "changed_options",
    "checkpoint_weights",
    "judge",
    "judged_windows",
    "matrix_inputs",
    "quantize_bundle",
    "write_rounded",
]

_CALIBRATION = 64  # windows
_JUDGED = 64  # windows of the text that is kept back


@dataclass(frozen=True)
class Requantized:
    """The new bundle, and its divergence from the old one on windows of the text that it was not calibrated
    with; None without a text."""

    exported: Exported
    divergence: "Divergence | None"


def quantize_bundle(
    bundle: Path | str,
    output: Path | str,
    scheme: str,
    text: str | None = None,
    *,
    types: Mapping[str, str] | None = None,
    roundings: Mapping[str, str] | None = None,
    calibration: str | None = None,
    smooth: float | None = None,
    known_inputs: Matrices | None = None,
    force: bool = False,
    progress: AnyProgress = silent,
) -> Requantized:
    """Round the weights of `bundle` by `scheme` ("int4-gptq"; doge_export.weights.parse_scheme) into
    `output`.

    `types` gives matrices a type of their own, and `roundings` a method (ExportOptions). "w8a8" and
    "w8a8-fp8" round activations too: `calibration` and `smooth` are those of
    doge_export.compress.calibration.static_ranges, and belong to no other scheme.

    `known_inputs` is what `matrix_inputs` gave for this bundle and text, to spare another reading of it. The
    last fifth of `text` is kept back to judge the result by; the rest calibrates. `progress` gets tokens
    read or bytes written, and the name of the stage.

    Raises:
        DogeExportError: the bundle has no full weights, the scheme does not exist or needs a text, a type or
            what it is for does not exist, the text is too short, or `output` is in the way.
    """
    progress = reporting(progress)
    asked = parse_scheme(scheme)
    check_method(asked.method)
    source = Bundle.open(bundle)
    check_output(Path(output), force, (source.path,))
    options = changed_options(
        source,
        precision=asked.precision.name,
        rounding=str(asked.method),
        types=types or {},
        roundings=roundings or {},
    )
    _check_activations(options, calibration, smooth)
    _check_text(options, scheme, text)
    source.verify()
    weights = checkpoint_weights(source)
    windows, judged = _split(source, text)
    inputs = dict(known_inputs or {})
    if windows is not None and known_inputs is None and options.methods != {METHODS["nearest"]}:
        inputs = _hessians(source, windows, progress)
    work = WeightRounding(source, options, weights, inputs, progress)
    work.scale_channels()
    round_with = work.tune(text) if options.method.tuned and text is not None else work.rounding()
    static = None
    if options.stored.static is not None:
        assert windows is not None
        static = work.ranges(options.stored.static, windows, calibration, smooth)
    exported = write_rounded(
        source, output, options, round_with, work.weights, static, force=force, progress=progress
    )
    return Requantized(exported, judge(source, exported.bundle, judged, progress))


def matrix_inputs(source: Bundle, text: str, progress: Progress = silent) -> dict[str, Matrix]:
    """What `quantize_bundle` learns from a text about the inputs of every matrix of a bundle in full
    precision (doge_export.compress.calibration.hessians).

    Raises:
        DogeExportError: the text is too short.
    """
    return _hessians(source, _calibrating(source, text), progress)


def _hessians(source: Bundle, windows: Ids, progress: Progress) -> dict[str, Matrix]:
    from doge_export.compress.calibration import hessians

    return hessians(source, windows, progress)


def write_rounded(
    source: Bundle,
    output: Path | str,
    options: ExportOptions,
    round_with: "Round",
    weights: Arrays,
    static: "StaticRanges | None" = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """The bundle `source`, in full precision, once more with `options`; `weights`, by their names in the
    checkpoint, are rounded by `round_with`, and activations by `static`."""
    config, decision = source.config, source.manifest.generation
    with new_folder(Path(output), force, (source.path,)) as folder:
        copy_sidecars(source.path, folder)
        progress(0, "building the graph")
        model = TracedModel(
            _canonical(source, options, weights),
            _tensors(weights, options.dtype),
            config,
            decision or Decision(config.generation, "manifest"),
            source.manifest.versions,
        )
        write_bundle(folder, model, options, round_with=round_with, static=static, progress=progress)
    return Exported(Bundle.open(output), None)


def _canonical(source: Bundle, options: ExportOptions, names: Collection[str]) -> CanonicalGraph:
    """The graph that the bundle keeps; where it keeps none, as one of before 0.2, or one of another dtype,
    the model is traced again, which needs torch."""
    wanted = (options.dtype, options.routing, options.kv_cache, options.slots(source.config))
    if (path := source.path / CANONICAL).is_file():
        kept = CanonicalGraph.load(path)
        if (kept.dtype, kept.routing, kept.kv_cache, kept.max_length) == wanted:
            return kept
    need_torch()
    from doge_export.model.trace import trace

    return trace(source.config, names, *wanted)


def _tensors(weights: Arrays, dtype: str) -> dict[str, ir.TensorProtocol]:
    """The weights in the dtype of the graph, one at a time."""
    to = DTYPES[dtype]

    def tensor(name: str) -> ir.TensorProtocol:
        def make() -> ir.TensorProtocol:
            with np.errstate(over="ignore"):
                return ir.Tensor(weights[name].astype(to.numpy(), copy=False), name=name)

        return ir.LazyTensor(make, dtype=to, shape=ir.Shape(weights[name].shape), name=name)

    return {name: tensor(name) for name in weights}


def changed_options(source: Bundle, **changed: Any) -> ExportOptions:
    """The options of a bundle in full precision, with some changed.

    Raises:
        DogeExportError: it is rounded already, or what is changed does not fit the model.
    """
    recorded = source.manifest.options
    if recorded.rounds:
        what = "types of its own" if recorded.full else recorded.precision
        raise DogeExportError(
            f"{source.path} is rounded to {what} already.", "Give the bundle it was made from."
        )
    options = ExportOptions.of_manifest(recorded, needed=("dtype",), **changed)
    options.check_model(source.config)
    return options


def _check_activations(options: ExportOptions, calibration: str | None, smooth: float | None) -> None:
    static = options.stored.static
    if static is None:
        if calibration is not None or smooth is not None:
            raise DogeExportError(
                "--calibration and --smooth are about activations, which only w8a8 and w8a8-fp8 round.",
                "Leave them out, or choose --scheme w8a8.",
            )
        return
    from doge_export.compress.calibration import CALIBRATIONS

    if calibration is not None and calibration not in CALIBRATIONS:
        raise DogeExportError(
            f"There is no calibration {calibration!r}.", f"Choose {', '.join(CALIBRATIONS)}."
        )
    if calibration == "entropy" and static.number.floating:
        raise DogeExportError(
            "entropy chooses between ranges by 128 even steps, which float8 has not.",
            "Choose --calibration min-max or percentile.",
        )
    if smooth is not None and not 0 <= smooth <= 1:
        raise DogeExportError(f"--smooth {smooth} is not between 0 and 1.", "0.5 is the published value.")


def _check_text(options: ExportOptions, scheme: str, text: str | None) -> None:
    whole = options.stored.static is not None or options.method.needs_text
    if text is None and (whole or any(method.needs_text for method in options.methods)):
        how = scheme if whole else "A method of --set"
        raise DogeExportError(f"{how} learns from a text.", "Give one with --text FILE.")


def _split(source: Bundle, text: str | None) -> tuple[Ids | None, Ids | None]:
    """Windows to calibrate with, and windows to judge by."""
    return (None, None) if text is None else (_calibrating(source, text), judged_windows(source, text))


def _calibrating(source: Bundle, text: str) -> Ids:
    from doge_export.compress.calibration import windows

    return windows(source, calibration_text(text), _CALIBRATION)


def judged_windows(source: Bundle, text: str) -> Ids:
    """Token ids [windows, length] of the last fifth of the text, which nothing else may see.

    Raises:
        DogeExportError: it is shorter than one window.
    """
    from doge_export.compress.calibration import windows
    from doge_export.compress.mixed_precision import parts_of

    return windows(source, parts_of(text)[-1], _JUDGED)


def judge(source: Bundle, rounded: Bundle, ids: Ids | None, progress: Progress) -> "Divergence | None":
    """How far `rounded` is from `source` on ids [windows, length]; None without any."""
    if ids is None:
        return None
    from doge_export.compress.calibration import divergence
    from doge_export.runtime import Session

    base, other = Session.open(source), Session.open(rounded)
    return divergence(base, other, ids, progress)


def checkpoint_weights(bundle: Bundle) -> dict[str, Array]:
    """The tensors of the bundle's checkpoint by name, as the bundle stores them.

    Raises:
        DogeExportError: one is not finite.
    """
    from doge_export.compress.calibration import checkpoint_tensors

    tensors = checkpoint_tensors(ir.load(bundle.model_path))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise DogeExportError(
                f"{name} holds numbers that are not finite, which no rounding can store.",
                "Export from a checkpoint without them.",
            )
    return tensors
