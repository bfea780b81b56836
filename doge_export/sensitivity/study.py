"""What storing some matrices in fewer bits costs on a text: measured, and each measurement made once."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.bundle import Bundle
from doge_export.calibrate import checkpoint_tensors, hessians, windows
from doge_export.errors import DogeExportError
from doge_export.journal import Journal
from doge_export.quantize import HALF, named_precision, role_of, stays_float, stored_bytes, stored_dtype
from doge_export.recipe import ExportOptions
from doge_export.sensitivity.basis import Basis, scaled_method
from doge_export.sensitivity.probe import Effect, Probe
from doge_export.shapes import tensor_shapes

__all__ = ["Study", "parts_of"]

_CALIBRATION = 64  # windows
_MOST, _FEW = 64, 20  # windows that are measured on, and those of them that do where much is compared
_MEMORY = 1 << 31  # bytes of logits
_ROUNDING = 3  # grows where a method gives other numbers: what was measured of older ones is forgotten
_WIDTHS = {"float32": 4, "float16": 2}


def parts_of(text: str) -> tuple[str, str, str]:
    """The text cut between words: three fifths to calibrate with, one to search by, and one to judge by,
    that nothing else may see."""
    borders = []
    for fifth in (3, 4):
        at = len(text) * fifth // 5
        borders.append(max(text.rfind(" ", 0, at), 0) or at)
    return text[: borders[0]], text[borders[0] : borders[1]], text[borders[1] :]


class Study:
    """`bundle`, in full precision, whose matrices `method` rounds with the first part of `text`, measured on
    `most` windows of the second (None: up to 64, whose logits take at most 2 GiB). `journal`: a file that
    keeps what was measured, beside the work's output. `progress` gets the tokens read in preparation, and the
    name of the stage.

    Raises:
        DogeExportError: the bundle is rounded already or damaged, or the text is too short.
    """

    def __init__(
        self,
        bundle: Bundle,
        text: str,
        *,
        method: str = "gptq",
        most: int | None = None,
        journal: Path | None = None,
        progress: Callable[[int, str], None] = lambda steps, stage: None,
    ) -> None:
        options = bundle.manifest.options
        if options.get("precision", "fp32") != "fp32" or options.get("types"):
            raise DogeExportError(f"{bundle.path} is rounded already.", "Give the bundle it was made from.")
        ExportOptions.of_manifest(options, needed=("dtype",))
        if options["dtype"] not in _WIDTHS:
            raise DogeExportError(f"{bundle.path} is in {options['dtype']}, which does not run here.")
        bundle.verify()
        self.bundle, self.method, self._progress = bundle, method, progress
        self.width, self.tied = _WIDTHS[options["dtype"]], bundle.config.tie_word_embeddings
        self.shapes = tensor_shapes(bundle.config)
        calibration, searched, _ = parts_of(text)
        self._calibration = windows(bundle, calibration, _CALIBRATION)
        self._ids = _few_first(windows(bundle, searched, most or _MOST))
        if most is None:
            logits = 4 * self._ids.shape[1] * bundle.config.vocab_size
            self._ids = self._ids[: max(1, _MEMORY // logits)]
        self._scaled: dict[str, Basis] = {}
        subject = {
            "weights": {name: each.sha256 for name, each in bundle.manifest.files.items() if "onnx" in name},
            "text": hashlib.sha256(text.encode()).hexdigest(),
            "method": method,
            "rounding": _ROUNDING,
            "windows": [len(self._ids), _FEW],
            "figures": [field.name for field in fields(Effect)],
        }
        self.journal = Journal(journal, subject)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The tensors that can be rounded, by their names in the checkpoint."""
        return tuple(name for name in self.shapes if role_of(name))

    @property
    def tokens(self) -> int:
        """How many are measured on."""
        return int(self._ids.size)

    def fits(self, name: str, dtype: str) -> bool:
        """Whether the matrix has blocks for the type, or numbers that float16 has."""
        if dtype == HALF and name in self._beyond_half:
            return False
        found = stored_dtype(name, self.shapes[name], named_precision("fp32", {name: dtype}), self.tied)
        return dtype == "fp32" or found is not None

    def bytes(self, types: Mapping[str, str], only: bool = False) -> int:
        """Of all tensors with these types, name -> type, or of those `only`; scales included."""
        shapes = {name: self.shapes[name] for name in types} if only else self.shapes
        return stored_bytes(shapes, named_precision("fp32", types), self.tied, self.width)

    @property
    def scalings(self) -> tuple[str, ...]:
        """What `effect` and `basis` take: no scales of channels, and those of AWQ for a type. (Those for
        int4 were tried too: on both fixtures they were never the best, in whatever type.)"""
        return ("", "int8") if scaled_method(self.method) else ("",)

    def basis(self, scaling: str = "") -> Basis:
        """What the matrices are rounded from."""
        if not scaling:
            return self._plain
        if scaling not in self._scaled:
            self._progress(0, "scaling channels")

            def dtype_of(name: str) -> str | None:
                rounds = role_of(name) and not stays_float(name) and self.fits(name, scaling)
                return scaling if rounds else None

            self._scaled[scaling] = self._plain.scaled(dtype_of)
        return self._scaled[scaling]

    def effect(self, types: Mapping[str, str], scaling: str = "", few: bool = False) -> Effect:
        """What storing these matrices so, and all others in full, does; to a `few` of the windows, from all
        over the text, where they tell enough: a typical KL, but no mean."""
        given = {name: dtype for name, dtype in sorted(types.items()) if dtype != "fp32"}
        count = min(_FEW, len(self._ids)) if few else len(self._ids)
        key = f"{json.dumps(given)} on {count}" + (f" scaled for {scaling}" if scaling else "")
        kept: Any = self.journal.get(key)
        if kept is None:
            kept = asdict(self._probe.effect(self.basis(scaling).changed(given, self._plain), count))
            self.journal.put(key, kept)
        return Effect(**kept)

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.bundle, self._ids, lambda tokens: self._progress(0, "reading the text"))

    @cached_property
    def _hessians(self) -> Mapping[str, npt.NDArray[np.float32]]:
        if self.method == "nearest":
            return {}
        return hessians(self.bundle, self._calibration, lambda tokens: self._progress(0, "calibrating"))

    @cached_property
    def _weights(self) -> Mapping[str, npt.NDArray[Any]]:
        return checkpoint_tensors(ir.load(self.bundle.model_path))

    @cached_property
    def _beyond_half(self) -> set[str]:
        most = np.finfo(np.float16).max
        return {name for name in self.matrices if np.abs(self._weights[name]).max() > most}

    @cached_property
    def _plain(self) -> Basis:
        return Basis(self._weights, self._hessians, self.method)


def _few_first(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows, but first some from all over."""
    first = np.unique(np.linspace(0, len(ids) - 1, min(_FEW, len(ids))).astype(np.int64))
    return ids[np.concatenate((first, np.setdiff1d(np.arange(len(ids)), first)))]
