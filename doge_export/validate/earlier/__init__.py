"""The judges of the generations before transformers': plain torch, written from the published formulas.

They have nothing of doge_export.model or doge_export.ops in them. The rotary embedding and the cache are
transformers', whose behaviour they had.
"""

from doge_export.validate.earlier.causal_lm import EarlierDoge, load_earlier

__all__ = ["EarlierDoge", "load_earlier"]
