"""Weights in fewer bits: one algorithm a file, and the table of what `--precision` means."""

from doge_export.quantize.awq import scale_channels
from doge_export.quantize.folds import apply_fold, folds
from doge_export.quantize.methods import METHODS, Method, parse_scheme, split_setting
from doge_export.quantize.precisions import (
    PRECISIONS,
    Precision,
    check_names,
    check_types,
    named_precision,
    names_of,
    own_of,
    role_of,
    static_type,
    stays_float,
    stored_bytes,
    stored_dtype,
    tunable,
    zero_points,
)
from doge_export.quantize.round_to_nearest import (
    HALF,
    Grid,
    Quantized,
    choose_block,
    dequantize,
    halved,
    nearest,
    quantize,
    quantized_tensors,
)
from doge_export.quantize.selection import embedding_metric, output_metrics

__all__ = [
    "HALF",
    "METHODS",
    "PRECISIONS",
    "Grid",
    "Method",
    "Precision",
    "Quantized",
    "apply_fold",
    "check_names",
    "check_types",
    "choose_block",
    "dequantize",
    "embedding_metric",
    "folds",
    "halved",
    "named_precision",
    "names_of",
    "nearest",
    "output_metrics",
    "own_of",
    "parse_scheme",
    "quantize",
    "quantized_tensors",
    "role_of",
    "scale_channels",
    "split_setting",
    "static_type",
    "stays_float",
    "stored_bytes",
    "stored_dtype",
    "tunable",
    "zero_points",
]
