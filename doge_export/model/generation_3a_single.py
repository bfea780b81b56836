"""Generation 3a from 23 February to 2 March 2025: as before, with one retrieval."""

from doge_export.model.generation_3a_mixed import Attention, CDMoE

__all__ = ["Attention", "CDMoE"]
