"""Generation 3a: a share of all keys is dropped. Its experts are those of generation 2."""

from doge_export.model import generation_3b
from doge_export.model.generation_2 import CDMoE

__all__ = ["Attention", "CDMoE"]


class Attention(generation_3b.Attention):
    """`dynamic_mask_ratio` of all keys are dropped; none with a ratio of 0 or of 1."""

    def share(self, ratio: float) -> float:
        return ratio if ratio < 1 else 0.0

    def window(self) -> int:
        return 0
