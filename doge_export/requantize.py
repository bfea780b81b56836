"""A bundle in full precision -> one with fewer bits, and what that cost on a text."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.bundle import Bundle, check_output
from doge_export.errors import DogeExportError
from doge_export.pipeline import Exported, export_model
from doge_export.quantize import MATRICES, METHODS, parse_scheme, scale_channels, stored_dtype
from doge_export.recipe import ExportOptions
from doge_export.tokenizer import copy_tokenizer_files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from doge_export.calibrate import Divergence
    from doge_export.quantize import Quantized

__all__ = ["Requantized", "checkpoint_weights", "quantize_bundle"]

_CALIBRATION = 64  # windows
_JUDGED = 16
_STATIC = "percentile"  # the calibration of w8a8


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
    calibration: str | None = None,
    smooth: float | None = None,
    keep: tuple[str, ...] = (),
    force: bool = False,
    progress: Callable[[int, str], None] = lambda steps, stage: None,
) -> Requantized:
    """Round the weights of `bundle` by `scheme` ("int4-gptq"; doge_export.quantize.parse_scheme) into
    `output`.

    "w8a8" rounds activations too: `calibration`, `smooth` and `keep` are those of
    doge_export.calibrate.static_ranges, and belong to no other scheme.

    The last fifth of `text` is kept back to judge the result by; the rest calibrates. `progress` gets tokens
    read or bytes written, and the name of the stage.

    Raises:
        DogeExportError: the bundle has no full weights, the scheme does not exist or needs a text, the text
        is too
            short, or `output` is in the way.
    """
    precision, method = parse_scheme(scheme)
    source = Bundle.open(bundle)
    check_output(Path(output), force)
    given = source.manifest.options
    if given.get("precision", "fp32") != "fp32":
        raise DogeExportError(
            f"{source.path} is rounded to {given['precision']} already.", "Give the bundle it was made from."
        )
    known = {field.name for field in fields(ExportOptions)}
    changed = {"precision": precision, "rounding": method}
    options = ExportOptions.resolve(**{**{k: v for k, v in given.items() if k in known}, **changed})
    _check_static(options, calibration, smooth, keep)
    if text is None and (METHODS[method].needs_text or precision == "w8a8"):
        raise DogeExportError(f"{scheme} learns from a text.", "Give one with --text FILE.")
    source.verify()
    weights = checkpoint_weights(source)
    _check_finite(weights)
    windows, judged = _split(source, text)
    known_inputs: dict[str, npt.NDArray[np.float32]] = {}
    if windows is not None and method != "nearest":
        from doge_export.calibrate import hessians

        known_inputs = hessians(source, windows, lambda tokens: progress(tokens, "reading the text"))

    def round_with(name: str, weight: Any, dtype: str) -> "Quantized":
        progress(0, f"rounding {name.removesuffix('.weight')}")
        return METHODS[method].round(weight, dtype, known_inputs.get(name))

    if METHODS[method].scales_channels:
        progress(0, "scaling channels")

        def dtype_of(name: str) -> str | None:
            return stored_dtype(name, weights[name].shape, precision, source.config.tie_word_embeddings)

        known_inputs = scale_channels(weights, known_inputs, dtype_of, METHODS[method].round)
    static = None
    if precision == "w8a8":
        from doge_export.calibrate import static_ranges

        static = static_ranges(
            source,
            weights,
            windows,
            calibration or _STATIC,
            smooth,
            keep,
            lambda tokens: progress(tokens, "reading the text"),
        )
    with tempfile.TemporaryDirectory(prefix="doge-export-") as folder:
        _write_checkpoint(source, weights, Path(folder))
        exported = export_model(
            folder,
            output,
            options,
            validate=False,
            force=force,
            progress=progress,
            round_with=round_with,
            static=static,
        )
    return Requantized(exported, _judge(source, exported.bundle, judged, progress))


def _check_static(
    options: ExportOptions, calibration: str | None, smooth: float | None, keep: tuple[str, ...]
) -> None:
    if options.precision != "w8a8":
        if calibration is not None or smooth is not None or keep:
            raise DogeExportError(
                "--calibration, --smooth and --keep are about activations, which only w8a8 rounds.",
                "Leave them out, or choose --scheme w8a8.",
            )
        return
    from doge_export.calibrate import CALIBRATIONS

    if options.dtype != "float32":
        raise DogeExportError(
            f"w8a8 is made of float32, and this bundle is {options.dtype}.", "Export with --dtype float32."
        )
    if calibration is not None and calibration not in CALIBRATIONS:
        raise DogeExportError(
            f"There is no calibration {calibration!r}.", f"Choose {', '.join(CALIBRATIONS)}."
        )
    if smooth is not None and not 0 <= smooth <= 1:
        raise DogeExportError(f"--smooth {smooth} is not between 0 and 1.", "0.5 is the published value.")
    if unknown := set(keep) - MATRICES:
        raise DogeExportError(
            f"There is no matrix {sorted(unknown)[0]!r} to keep.", f"Choose of {', '.join(sorted(MATRICES))}."
        )


def _split(source: Bundle, text: str | None) -> tuple[Any, Any]:
    """Windows to calibrate with, and windows to judge by."""
    if text is None:
        return None, None
    from doge_export.calibrate import windows

    border = text.rfind(" ", 0, len(text) * 4 // 5)
    border = border if border > 0 else len(text) * 4 // 5
    return windows(source, text[:border], _CALIBRATION), windows(source, text[border:], _JUDGED)


def _judge(
    source: Bundle, made: Bundle, ids: Any, progress: Callable[[int, str], None]
) -> "Divergence | None":
    if ids is None:
        return None
    from doge_export.calibrate import divergence
    from doge_export.runtime import Session

    base, other = Session.open(source), Session.open(made)
    return divergence(base, other, ids, lambda tokens: progress(tokens, "judging"))


def _check_finite(weights: dict[str, Any]) -> None:
    import numpy as np

    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise DogeExportError(
                f"{name} holds numbers that are not finite, which no rounding can store.",
                "Export from a checkpoint without them.",
            )


def checkpoint_weights(bundle: Bundle) -> dict[str, Any]:
    """The tensors of the bundle's checkpoint by name, as the bundle stores them."""
    import numpy as np
    import onnx_ir as ir

    tensors = {
        name: value.const_value.numpy()
        for name, value in ir.load(bundle.model_path).graph.initializers.items()
        if name.startswith(("model.", "lm_head.")) and value.const_value is not None
    }
    return {
        name.removesuffix(".T"): np.ascontiguousarray(tensor.T) if name.endswith(".T") else tensor
        for name, tensor in tensors.items()
    }


def _write_checkpoint(bundle: Bundle, weights: dict[str, Any], folder: Path) -> None:
    """Weights, and the files beside those of the bundle, as a checkpoint that `export` reads."""
    from safetensors.numpy import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(bundle.path / name, folder / name)
    copy_tokenizer_files(bundle.path, folder)
