"""What a checkpoint folder holds: which of its files are the weights, and what it may be instead. No torch
here."""

from doge_export.core.checkpoint.sources.other import embedded_adapter, explain_folder
from doge_export.core.checkpoint.sources.quantized import check_unquantized
from doge_export.core.checkpoint.sources.weights import weight_files

__all__ = ["check_unquantized", "embedded_adapter", "explain_folder", "weight_files"]
