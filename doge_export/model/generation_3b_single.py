"""Generation 3b from 2 to 13 March 2025: the experts of 3a-single beside a window."""

from doge_export.model.generation_3a_mixed import CDMoE
from doge_export.model.generation_3b import Attention

__all__ = ["Attention", "CDMoE"]
