"""What a matrix is stored in: a type of numbers, how many share a scale, and how many levels of scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from doge_export.core.errors import DogeExportError

__all__ = [
    "FORMATS",
    "FULL",
    "HALF",
    "LARGEST_BLOCK",
    "OWN_FORMATS",
    "Formats",
    "Number",
    "WeightFormat",
    "parse_types",
]

#: What the kernels read (plugins/kernels/doge_kernels.h).
LARGEST_BLOCK = 128
_ROW = 2**31
_HALF_SCALE, _E4M3 = np.dtype(np.float16), np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Number:
    """A type of numbers: `element`, numpy's, one number an element, of `bits` in the file. Where numbers have
    scales, a scale is the extreme of what is rounded / `divisor`, and what is stored lies in lowest..highest:
    whole numbers, or, `floating`, the element's own. Of unsigned ones `divisor` counts the steps of the whole
    range."""

    element: np.dtype[np.generic]
    onnx: ir.DataType
    bits: int
    divisor: float = 1.0
    lowest: int = 0
    highest: int = 0
    floating: bool = False


_INT8 = Number(np.dtype(np.int8), ir.DataType.INT8, 8, 127.0, -127, 127)
_INT4 = Number(np.dtype(ml_dtypes.int4), ir.DataType.INT4, 4, -8.0, -8, 7)
_UINT8 = Number(np.dtype(np.uint8), ir.DataType.UINT8, 8, 255.0, 0, 255)
_UINT4 = Number(np.dtype(ml_dtypes.uint4), ir.DataType.UINT4, 4, 15.0, 0, 15)
_FLOAT8 = Number(_E4M3, ir.DataType.FLOAT8E4M3FN, 8, 448.0, -448, 448, floating=True)
_FLOAT4 = Number(np.dtype(ml_dtypes.float4_e2m1fn), ir.DataType.FLOAT4E2M1, 4, 6.0, -6, 6, floating=True)
_FLOAT16 = Number(np.dtype(np.float16), ir.DataType.FLOAT16, 16, floating=True)
_FLOAT32 = Number(np.dtype(np.float32), ir.DataType.FLOAT, 32, floating=True)


@dataclass(frozen=True)
class WeightFormat:
    """What a matrix is stored in, by its name in recipes and manifests, which `str` gives: "int8", "int8:32".

    A block, numbers of a row with a scale of their own, has at most `largest` of them, a multiple of `step`,
    which is what kernels read at once; `largest` 0: there are no scales, as in FULL, the file's dtype, and
    HALF, float16. With `zeros` each block has a zero point too, of the numbers' type. `scale`: numpy's type
    of a block's scale; of float8 there is a global scale too.
    """

    name: str
    number: Number = field(repr=False)
    largest: int = field(default=0, repr=False)
    step: int = field(default=1, repr=False)
    zeros: bool = field(default=False, repr=False)
    scale: np.dtype[np.generic] = field(default=_HALF_SCALE, repr=False)

    @classmethod
    def parse(cls, text: str, what: str = "A matrix") -> "WeightFormat":
        """The format of that name; "int8:32" is "int8" in blocks of at most 32. `what` shall be stored in it,
        for the sentence that it cannot.

        Raises:
            DogeExportError: there is no such format.
        """
        if text in FORMATS:
            return FORMATS[text]
        name, _, block = text.partition(":")
        base = OWN_FORMATS.get(name)
        if base is not None and base.scaled and block.isascii() and block.isdigit() and len(block) < 10:
            largest = int(block)
            if 0 < largest <= LARGEST_BLOCK and largest % base.step == 0:
                return replace(base, name=text, largest=largest)
        raise _unknown(text, what)

    def __str__(self) -> str:
        return self.name

    @property
    def scaled(self) -> bool:
        """Whether its numbers have scales: of no other does a method choose anything."""
        return self.largest > 0

    @property
    def two_levels(self) -> bool:
        """Whether a matrix has a global scale."""
        return bool(self.scale == _E4M3)

    @property
    def scale_bits(self) -> int:
        """The bits of one block's scale."""
        return self.scale.itemsize * 8

    @property
    def base(self) -> "WeightFormat":
        """The same with blocks as large as they are where nobody says: "int8" of "int8:32"."""
        return FORMATS[self.name.partition(":")[0]]

    def check_own(self, what: str) -> None:
        """See whether a matrix may be given this format for itself.

        Raises:
            DogeExportError: it may not: no kernel of ours reads it.
        """
        if self.base not in OWN_FORMATS.values():
            raise _unknown(self.name, what)

    def block_of(self, width: int) -> int | None:
        """The block of rows of `width` numbers: the largest that divides them; None where none does."""
        sizes = range(min(self.largest, width), 0, -1)
        return next((size for size in sizes if width % size == 0 and size % self.step == 0), None)


#: A matrix in the file's dtype.
FULL = WeightFormat("fp32", _FLOAT32)
#: In float16, in a file of whatever dtype: no scales, and nothing to choose.
HALF = WeightFormat("fp16", _FLOAT16)
#: Those that a matrix may be given for itself.
OWN_FORMATS: dict[str, WeightFormat] = {
    form.name: form
    for form in (
        FULL,
        HALF,
        WeightFormat("int8", _INT8, 128, 4),
        WeightFormat("int4", _INT4, 32, 8),
        WeightFormat("int8-asym", _UINT8, 128, 4, zeros=True),
        WeightFormat("int4-asym", _UINT4, 32, 8, zeros=True),
    )
}
#: Matrices' formats, by their names in the checkpoint or by shorter ones.
Formats = Mapping[str, WeightFormat]
#: All, by name. "int8-row" and "fp8" have a scale a row, "nvfp4" has two levels of them.
FORMATS: dict[str, WeightFormat] = OWN_FORMATS | {
    form.name: form
    for form in (
        WeightFormat("int8-row", _INT8, _ROW, 1),
        WeightFormat("fp8", _FLOAT8, _ROW, 1),
        WeightFormat("nvfp4", _FLOAT4, 16, 16, scale=_E4M3),
    )
}


def parse_types(types: Mapping[str, str]) -> dict[str, WeightFormat]:
    """The formats of matrices by their names, of `--set`, a recipe or a manifest.

    Raises:
        DogeExportError: there is no such format.
    """
    return {key: WeightFormat.parse(text, key) for key, text in types.items()}


def _unknown(text: str, what: str) -> DogeExportError:
    scaled = ", ".join(name for name, form in OWN_FORMATS.items() if form.scaled)
    blocks = f"a multiple of 4 (int8) or 8 (int4), at most {LARGEST_BLOCK}"
    return DogeExportError(
        f"{what} cannot be stored in {text!r}.",
        f"Choose {FULL}, {HALF}, {scaled}, or one of the last with :N behind, N {blocks}.",
    )
