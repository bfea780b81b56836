"""Generation 3a until 23 January 2025: as 3a, but what a query may not see is filled in. Its experts are
those of generation 2."""

from typing import Any

from doge_export.model import generation_3a
from doge_export.model.generation_2 import CDMoE
from doge_export.model.operators.filled_mask_attention import filled_mask_attention

__all__ = ["Attention", "CDMoE"]


class Attention(generation_3a.Attention):
    """`dynamic_mask_ratio` of all keys are dropped; none with a ratio of 0 or of 1."""

    def operator(self, inputs: tuple[Any, ...], cache: tuple[Any, ...], heads: tuple[int, int]) -> Any:
        return filled_mask_attention(*inputs, self.ratio(), *cache, *heads, self.config.head_dim**-0.5)
