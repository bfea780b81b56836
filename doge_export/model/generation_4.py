"""Generation 4, of transformers: its attention and its experts."""

from doge_export.model.attention import Attention
from doge_export.model.feed_forward import CDMoE

__all__ = ["Attention", "CDMoE"]
