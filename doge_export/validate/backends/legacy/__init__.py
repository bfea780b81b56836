"""The judges of the generations before transformers': plain torch, written from the published formulas.

They have nothing of doge_export.model or doge_export.graph in them. The rotary embedding and the cache are
transformers', whose behaviour they had.
"""

from doge_export.validate.backends.legacy.causal_lm import LegacyDoge, load_legacy

__all__ = ["LegacyDoge", "load_legacy"]
