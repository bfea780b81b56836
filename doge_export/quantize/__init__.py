"""Weights in fewer bits: one algorithm a file, and the table of what `--precision` means."""

from doge_export.quantize.awq import scale_channels
from doge_export.quantize.folds import apply_fold, folds
from doge_export.quantize.methods import METHODS, Method, parse_scheme
from doge_export.quantize.precisions import MATRICES, PRECISIONS, Precision, stored_bytes, stored_dtype
from doge_export.quantize.round_to_nearest import (
    Quantized,
    choose_block,
    dequantize,
    quantize,
    quantized_tensors,
)

__all__ = [
    "MATRICES",
    "METHODS",
    "PRECISIONS",
    "Method",
    "Precision",
    "Quantized",
    "apply_fold",
    "choose_block",
    "dequantize",
    "folds",
    "parse_scheme",
    "quantize",
    "quantized_tensors",
    "scale_channels",
    "stored_bytes",
    "stored_dtype",
]
