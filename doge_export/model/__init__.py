"""The graph-exportable Doge: plain torch modules with the cache explicit in and out.

Parameter names are those of transformers' `DogeForCausalLM`, so a checkpoint loads by name.
"""

from doge_export.model.causal_lm import CACHE_KINDS, DogeForExport
from doge_export.model.load import load_model

__all__ = ["CACHE_KINDS", "DogeForExport", "load_model"]
