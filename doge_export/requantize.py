"""A bundle in full precision -> one with fewer bits, and what that cost on a text."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.bundle import Bundle, check_output
from doge_export.decision import Decision
from doge_export.errors import DogeExportError
from doge_export.pipeline import Exported, export_model
from doge_export.quantize import (
    HALF,
    METHODS,
    nearest,
    output_metrics,
    parse_scheme,
    scale_channels,
    static_type,
    stored_dtype,
)
from doge_export.recipe import ExportOptions
from doge_export.temporary import temporary_folder
from doge_export.tokenizer import copy_tokenizer_files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from doge_export.calibrate import Divergence
    from doge_export.passes.quantize_activations import StaticRanges
    from doge_export.passes.quantize_weights import Round
    from doge_export.quantize import Quantized

__all__ = [
    "Requantized",
    "changed_options",
    "checkpoint_weights",
    "judge",
    "judged_windows",
    "matrix_inputs",
    "quantize_bundle",
    "tuned",
    "write_rounded",
]

_CALIBRATION = 64  # windows
_JUDGED = 64  # windows of the text that is kept back
_CALIBRATIONS = {"int8": "percentile", "fp8": "min-max"}  # of activations, unless another is asked for


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
    known_inputs: "Mapping[str, npt.NDArray[np.float32]] | None" = None,
    force: bool = False,
    progress: Callable[[int, str], None] = lambda steps, stage: None,
) -> Requantized:
    """Round the weights of `bundle` by `scheme` ("int4-gptq"; doge_export.quantize.parse_scheme) into
    `output`.

    `types` gives matrices a type of their own, and `roundings` a method (ExportOptions). "w8a8" and
    "w8a8-fp8" round activations too: `calibration` and `smooth` are those of
    doge_export.calibrate.static_ranges, and belong to no other scheme.

    `known_inputs` is what `matrix_inputs` gave for this bundle and text, to spare another reading of it. The
    last fifth of `text` is kept back to judge the result by; the rest calibrates. `progress` gets tokens
    read or bytes written, and the name of the stage.

    Raises:
        DogeExportError: the bundle has no full weights, the scheme does not exist or needs a text, a type or
            what it is for does not exist, the text is too short, or `output` is in the way.
    """
    precision, method = parse_scheme(scheme)
    source = Bundle.open(bundle)
    check_output(Path(output), force, (source.path,))
    options = changed_options(
        source, precision=precision, rounding=method, types=types or {}, roundings=roundings or {}
    )
    _check_static(options, calibration, smooth)
    if text is None and (options.stored.static or any(METHODS[each].needs_text for each in options.methods)):
        how = scheme if options.stored.static or METHODS[method].needs_text else "A method of --set"
        raise DogeExportError(f"{how} learns from a text.", "Give one with --text FILE.")
    source.verify()
    weights = checkpoint_weights(source)
    windows, judged = _split(source, text)
    inputs = dict(known_inputs or {})
    if windows is not None and known_inputs is None and options.methods != {"nearest"}:
        inputs = _hessians(source, windows, progress)

    config, stored = source.config, options.stored

    def dtype_of(name: str) -> str | None:
        dtype = stored_dtype(name, weights[name].shape, stored, config.tie_word_embeddings)
        return None if dtype == HALF else dtype

    def round_with(name: str, weight: Any, dtype: str) -> "Quantized":
        progress(0, f"rounding {name.removesuffix('.weight')}")
        how = METHODS[options.method_of(name, config.tie_word_embeddings)]
        return how.round(weight, dtype, inputs.get(name), metrics.get(name))

    full = dict(weights)
    if METHODS[method].scales_channels:
        progress(0, "scaling channels")
        inputs = scale_channels(weights, inputs, dtype_of, METHODS[method].round)
    metrics = output_metrics(weights, inputs)
    rounding: Round = round_with
    if METHODS[method].tunes:
        assert text is not None
        made = {
            name: round_with(name, weights[name].astype("float32"), dtype)
            for name in weights
            if (dtype := dtype_of(name)) is not None
        }
        rounding, weights = tuned(source, options, full, weights, made, text, progress)
    static = None
    if options.stored.static:
        from doge_export.calibrate import static_ranges

        static = static_ranges(
            source,
            weights,
            windows,
            calibration or _CALIBRATIONS[stored.static],
            smooth,
            {name for name in weights if static_type(name, stored, config.tie_word_embeddings) is None},
            lambda tokens: progress(tokens, "reading the text"),
            stored.static,
        )
    exported = write_rounded(
        source, output, options, rounding, weights, static, force=force, progress=progress
    )
    return Requantized(exported, judge(source, exported.bundle, judged, progress))


def tuned(
    source: Bundle,
    options: ExportOptions,
    full: Mapping[str, Any],
    weights: Mapping[str, Any],
    made: "Mapping[str, Quantized]",
    text: str,
    progress: Callable[[int, str], None] = lambda steps, stage: None,
) -> "tuple[Round, dict[str, Any]]":
    """`made`, what `weights` are rounded to, nearer to the checkpoint `full` on the first four fifths of the
    text (doge_export.tune): what gives the matrices, and all tensors."""
    from doge_export.calibrate import windows
    from doge_export.tune import TUNING, tune

    tied, given = source.config.tie_word_embeddings, dict(weights)
    for name, weight in weights.items():
        if stored_dtype(name, weight.shape, options.stored, tied) == HALF:
            given[name] = nearest(weight, HALF)
    ids = windows(source, _seen(text), TUNING)
    learned, floats = tune(
        source.config,
        full,
        given,
        made,
        ids,
        routing=options.routing,
        advance=progress,
    )
    return lambda name, weight, dtype: learned[name], {**weights, **floats}


def matrix_inputs(
    source: Bundle, text: str, progress: Callable[[int, str], None] = lambda steps, stage: None
) -> "dict[str, npt.NDArray[np.float32]]":
    """What `quantize_bundle` learns from a text about the inputs of every matrix of a bundle in full
    precision (doge_export.calibrate.hessians).

    Raises:
        DogeExportError: the text is too short.
    """
    return _hessians(source, _split(source, text)[0], progress)


def _hessians(
    source: Bundle, windows: Any, progress: Callable[[int, str], None]
) -> "dict[str, npt.NDArray[np.float32]]":
    from doge_export.calibrate import hessians

    return hessians(source, windows, lambda tokens: progress(tokens, "reading the text"))


def write_rounded(
    source: Bundle,
    output: Path | str,
    options: ExportOptions,
    round_with: "Round",
    weights: Mapping[str, Any],
    static: "StaticRanges | None" = None,
    *,
    force: bool = False,
    progress: Callable[[int, str], None] = lambda steps, stage: None,
) -> Exported:
    """The bundle `source`, in full precision, once more with `options`; `weights`, by their names in the
    checkpoint, are rounded by `round_with`, and activations by `static`."""
    with temporary_folder() as folder:
        _write_checkpoint(source, weights, folder)
        return export_model(
            str(folder),
            output,
            options,
            validate=False,
            force=force,
            progress=progress,
            round_with=round_with,
            static=static,
            decision=source.manifest.generation or Decision(source.config.generation, "manifest"),
        )


def changed_options(source: Bundle, **changed: Any) -> ExportOptions:
    """Those of a bundle in full precision, with some changed.

    Raises:
        DogeExportError: it is rounded already, or what is changed does not fit the model.
    """
    given = source.manifest.options
    if given.get("precision", "fp32") != "fp32" or given.get("types"):
        precision = given.get("precision", "fp32")
        what = precision if precision != "fp32" else "types of its own"
        raise DogeExportError(
            f"{source.path} is rounded to {what} already.", "Give the bundle it was made from."
        )
    options = ExportOptions.of_manifest({**given, **changed}, needed=("dtype",))
    options.check_model(source.config)
    return options


def _check_static(options: ExportOptions, calibration: str | None, smooth: float | None) -> None:
    if not options.stored.static:
        if calibration is not None or smooth is not None:
            raise DogeExportError(
                "--calibration and --smooth are about activations, which only w8a8 and w8a8-fp8 round.",
                "Leave them out, or choose --scheme w8a8.",
            )
        return
    from doge_export.calibrate import CALIBRATIONS

    if calibration is not None and calibration not in CALIBRATIONS:
        raise DogeExportError(
            f"There is no calibration {calibration!r}.", f"Choose {', '.join(CALIBRATIONS)}."
        )
    if calibration == "entropy" and options.stored.static == "fp8":
        raise DogeExportError(
            "entropy chooses between ranges by 128 even steps, which float8 has not.",
            "Choose --calibration min-max or percentile.",
        )
    if smooth is not None and not 0 <= smooth <= 1:
        raise DogeExportError(f"--smooth {smooth} is not between 0 and 1.", "0.5 is the published value.")


def _split(source: Bundle, text: str | None) -> tuple[Any, Any]:
    """Windows to calibrate with, and windows to judge by."""
    if text is None:
        return None, None
    from doge_export.calibrate import windows

    return windows(source, _seen(text), _CALIBRATION), judged_windows(source, text)


def _seen(text: str) -> str:
    """What calibrates: all but what is kept back."""
    from doge_export.sensitivity import parts_of

    return "".join(parts_of(text)[:2])


def judged_windows(source: Bundle, text: str) -> "npt.NDArray[np.int64]":
    """Token ids [windows, length] of the last fifth of the text, which nothing else may see.

    Raises:
        DogeExportError: it is shorter than one window.
    """
    from doge_export.calibrate import windows
    from doge_export.sensitivity import parts_of

    return windows(source, parts_of(text)[-1], _JUDGED)


def judge(
    source: Bundle, made: Bundle, ids: Any, progress: Callable[[int, str], None]
) -> "Divergence | None":
    """How far `made` is from `source` on ids [windows, length]; None without any."""
    if ids is None:
        return None
    from doge_export.calibrate import divergence
    from doge_export.runtime import Session

    base, other = Session.open(source), Session.open(made)
    return divergence(base, other, ids, lambda tokens: progress(tokens, "judging"))


def checkpoint_weights(bundle: Bundle) -> dict[str, Any]:
    """The tensors of the bundle's checkpoint by name, as the bundle stores them.

    Raises:
        DogeExportError: one is not finite.
    """
    import numpy as np
    import onnx_ir as ir

    from doge_export.calibrate import checkpoint_tensors

    tensors = checkpoint_tensors(ir.load(bundle.model_path))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise DogeExportError(
                f"{name} holds numbers that are not finite, which no rounding can store.",
                "Export from a checkpoint without them.",
            )
    return tensors


def _write_checkpoint(bundle: Bundle, weights: Mapping[str, Any], folder: Path) -> None:
    """Weights, and the files beside those of the bundle, as a checkpoint that `export` reads."""
    from safetensors.numpy import save_file

    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(bundle.path / name, folder / name)
    copy_tokenizer_files(bundle.path, folder)
