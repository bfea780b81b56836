"""Weights in fewer bits: one algorithm a file, and the table of what `--precision` means."""

from doge_export.quantize.methods import METHODS, Method, parse_scheme
from doge_export.quantize.precisions import (
    PRECISIONS,
    Precision,
    check_types,
    named_precision,
    names_of,
    role_of,
    stays_float,
    stored_bytes,
    stored_dtype,
)
from doge_export.quantize.round_to_nearest import (
    Quantized,
    choose_block,
    dequantize,
    quantize,
    quantized_tensors,
)

__all__ = [
    "METHODS",
    "PRECISIONS",
    "Method",
    "Precision",
    "Quantized",
    "check_types",
    "choose_block",
    "dequantize",
    "named_precision",
    "names_of",
    "parse_scheme",
    "quantize",
    "quantized_tensors",
    "role_of",
    "stays_float",
    "stored_bytes",
    "stored_dtype",
]
