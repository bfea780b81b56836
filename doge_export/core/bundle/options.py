"""The options that a bundle was made with, as its manifest says them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import member

__all__ = ["ONNXRUNTIME_SINCE", "BundleOptions"]

_TEXTS = ("target", "dtype", "precision", "rounding", "kv_cache", "routing", "generation", "calibration")
_FLAGS = ("plugins", "dequantize_at_load")
_TABLES = ("types", "roundings")
_COUNTS = ("max_length", "opset")
_FULL, _NEAREST = "fp32", "nearest"
#: As bundles of before 0.1 call full precision.
_OLD_FULL = "none"


#: The opset of a graph -> the first onnxruntime that runs it.
ONNXRUNTIME_SINCE = {23: "1.23", 24: "1.24"}


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle was exported and rounded with; None where the manifest does not say.

    The names are those of doge_export.export.ExportOptions; `types` and `roundings` hold names of formats and
    methods, which doge_export.weights knows. `dequantize_at_load`: the matrices are to be dequantized when
    the graph is loaded, not in each step. `calibration` and `smooth`: how the ranges of activations were
    found. `raw`: the manifest's own object, with what a later version added.
    """

    target: str | None = None
    dtype: str | None = None
    precision: str = _FULL
    rounding: str = _NEAREST
    kv_cache: str | None = None
    routing: str = "reference"
    generation: str | None = None
    calibration: str | None = None
    smooth: float | None = None
    max_length: int | None = None
    opset: int | None = None
    plugins: bool = False
    dequantize_at_load: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    roundings: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "BundleOptions":
        """Check what is computed with; options of a later version may be anything.

        Raises:
            ValueError: an option is of another kind.
        """
        kinds: dict[str, type] = {
            **dict.fromkeys(_TEXTS, str),
            **dict.fromkeys(_FLAGS, bool),
            **dict.fromkeys(_TABLES, dict),
            **dict.fromkeys(_COUNTS, int),
            "smooth": float,
        }
        known = {key: member(raw, key, kind) for key, kind in kinds.items() if raw.get(key) is not None}
        for key in _TABLES:
            for name in (table := known.get(key, {})):
                member(table, name, str)
        if known.get("precision") == _OLD_FULL:
            known["precision"] = _FULL
        return cls(**known, raw=dict(raw))

    def to_dict(self) -> dict[str, Any]:
        """What the manifest holds, for JSON that repeats it."""
        return dict(self.raw)

    def check(self, needed: Iterable[str]) -> None:
        """See whether the manifest says something of every option in `needed`.

        Raises:
            DogeExportError: it does not.
        """
        for name in needed:
            if self.raw.get(name) is None:
                raise DogeExportError(
                    f"The bundle's manifest has no option {name}.", "Export the model again."
                )

    @property
    def float_dtype(self) -> str:
        """The dtype, which every export writes.

        Raises:
            DogeExportError: the manifest says nothing of it.
        """
        self.check(("dtype",))
        return str(self.dtype)

    @property
    def min_onnxruntime(self) -> str | None:
        """The first onnxruntime that runs a graph of this opset; None where the manifest has none."""
        return None if self.opset is None else ONNXRUNTIME_SINCE.get(self.opset)

    @property
    def label(self) -> str:
        """The precision; the dtype where the manifest names none."""
        return str(self.raw.get("precision") or self.dtype)

    @property
    def full(self) -> bool:
        """Whether all matrices are in the dtype that `types` says nothing of."""
        return self.precision == _FULL

    @property
    def rounds(self) -> bool:
        """Whether any matrix may be in fewer bits."""
        return not self.full or bool(self.types)

    @property
    def nearest(self) -> bool:
        """Whether every matrix is rounded to nearest, so that the checkpoint gives the same again."""
        return {self.rounding, *self.roundings.values()} == {_NEAREST}

    @property
    def per_token(self) -> bool:
        """Whether each token chooses its experts by itself, which the reference does not let it."""
        return self.routing == "per-token"

    @property
    def float4(self) -> bool:
        """Whether matrices are in float4, which onnxruntime does not read."""
        return self.precision == "nvfp4"
