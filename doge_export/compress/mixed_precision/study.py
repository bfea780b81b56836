"""What storing some matrices in fewer bits costs on a text: measured, and each measurement made once."""

import hashlib
import json
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.compress.calibration import checkpoint_tensors, hessians, windows
from doge_export.compress.mixed_precision.basis import Basis
from doge_export.compress.mixed_precision.probe import Effect, Probe
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.journal import Journal
from doge_export.core.progress import Progress, silent, stages
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.export.options import ExportOptions
from doge_export.weights import (
    FORMATS,
    FULL,
    HALF,
    METHODS,
    PRECISIONS,
    Arrays,
    Formats,
    Matrices,
    Method,
    WeightFormat,
    role_of,
    stays_float,
    stored_bytes,
    stored_format,
)

__all__ = ["Study", "parts_of"]

_CALIBRATION = 64  # windows
_MAX_WINDOWS, _FEW = 64, 20  # windows that are measured on, and those of them that do where much is compared
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
    `max_windows` windows of the second (None: up to 64, whose logits take at most 2 GiB). `journal`: a file
    that keeps what was measured, beside the work's output. `progress` gets the stages of the preparation.

    Raises:
        DogeExportError: the bundle is rounded already or damaged, or the text is too short.
    """

    def __init__(
        self,
        bundle: Bundle,
        text: str,
        *,
        method: Method = METHODS["gptq"],
        max_windows: int | None = None,
        journal: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        options = bundle.manifest.options
        if options.rounds:
            raise DogeExportError(f"{bundle.path} is rounded already.", "Give the bundle it was made from.")
        dtype = ExportOptions.of_manifest(options, needed=("dtype",)).dtype
        if dtype not in _WIDTHS:
            raise DogeExportError(f"{bundle.path} is in {dtype}, which does not run here.")
        bundle.verify()
        self.bundle, self.method, self._progress = bundle, method, stages(progress)
        self.width, self.tied = _WIDTHS[dtype], bundle.config.tie_word_embeddings
        self.shapes = tensor_shapes(bundle.config)
        calibration, searched, _ = parts_of(text)
        self._calibration = windows(bundle, calibration, _CALIBRATION)
        self._ids = _few_first(windows(bundle, searched, max_windows or _MAX_WINDOWS))
        if max_windows is None:
            logits = 4 * self._ids.shape[1] * bundle.config.vocab_size
            self._ids = self._ids[: max(1, _MEMORY // logits)]
        self._scaled: dict[WeightFormat, Basis] = {}
        subject = {
            "weights": {name: each.sha256 for name, each in bundle.manifest.files.items() if "onnx" in name},
            "text": hashlib.sha256(text.encode()).hexdigest(),
            "method": str(method),
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
        """The number of tokens that are measured on."""
        return int(self._ids.size)

    def fits(self, name: str, form: WeightFormat) -> bool:
        """Whether the matrix has blocks for the format, or numbers that float16 has."""
        if form == HALF and name in self._beyond_half:
            return False
        own = PRECISIONS["fp32"].with_types({name: form})
        return stored_format(name, self.shapes[name], own, self.tied) == form

    def bytes(self, types: Formats, only: bool = False) -> int:
        """Bytes of all tensors with these formats, or of those `only`; scales included."""
        shapes = {name: self.shapes[name] for name in types} if only else self.shapes
        return stored_bytes(shapes, PRECISIONS["fp32"].with_types(types), self.tied, self.width)

    @property
    def scalings(self) -> tuple[WeightFormat | None, ...]:
        """What `effect` and `basis` take: no scales of channels, and those of AWQ for a format. (Those for
        int4 were tried too: on both fixtures they were never the best, in whatever format.)"""
        return (None, FORMATS["int8"]) if self.method.scaled else (None,)

    def basis(self, scaling: WeightFormat | None = None) -> Basis:
        """What the matrices are rounded from."""
        if scaling is None:
            return self._plain
        if scaling not in self._scaled:
            self._progress(0, "scaling channels")

            def format_of(name: str) -> WeightFormat:
                rounds = role_of(name) and not stays_float(name) and self.fits(name, scaling)
                return scaling if rounds else FULL

            self._scaled[scaling] = self._plain.scaled(format_of)
        return self._scaled[scaling]

    def effect(self, types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Effect:
        """What storing these matrices so, and all others in full, does; to a `few` of the windows, from all
        over the text, where they tell enough: a typical KL, but no mean."""
        formats = {name: types[name] for name in sorted(types) if types[name] != FULL}
        count = min(_FEW, len(self._ids)) if few else len(self._ids)
        key = f"{json.dumps({name: str(form) for name, form in formats.items()})} on {count}" + (
            f" scaled for {scaling}" if scaling else ""
        )
        kept: Any = self.journal.get(key)
        if kept is None:
            kept = asdict(self._probe.effect(self.basis(scaling).changed(formats, self._plain), count))
            self.journal.put(key, kept)
        return Effect(**kept)

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.bundle, self._ids, self._progress)

    @cached_property
    def _hessians(self) -> Matrices:
        if self.method == METHODS["nearest"]:
            return {}
        return hessians(self.bundle, self._calibration, self._progress)

    @cached_property
    def _weights(self) -> Arrays:
        return checkpoint_tensors(ir.load(self.bundle.model_path))

    @cached_property
    def _beyond_half(self) -> set[str]:
        largest = np.finfo(np.float16).max
        return {name for name in self.matrices if np.abs(self._weights[name]).max() > largest}

    @cached_property
    def _plain(self) -> Basis:
        return Basis(self._weights, self._hessians, self.method)


def _few_first(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows, but first some from all over."""
    first = np.unique(np.linspace(0, len(ids) - 1, min(_FEW, len(ids))).astype(np.int64))
    return ids[np.concatenate((first, np.setdiff1d(np.arange(len(ids)), first)))]
