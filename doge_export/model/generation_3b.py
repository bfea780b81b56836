"""Generation 3b: of the keys beyond keep_window_size a share is dropped. Its experts are the current ones."""

from typing import Any

import torch

from doge_export.model.feed_forward import CDMoE
from doge_export.model.head_attention import HeadAttention
from doge_export.model.operators.ratio_mask_attention import ratio_mask_attention

__all__ = ["Attention", "CDMoE"]


class Attention(HeadAttention):
    """`dynamic_mask_ratio` of the keys beyond keep_window_size are dropped. With a ratio of 0 none are; the
    original fails beyond the window then."""

    def share(self, ratio: float) -> float:
        """Return the share of keys that is dropped, from that of config.json."""
        return ratio

    def window(self) -> int:
        """Return the number of keys that the share is not taken of."""
        return self.config.keep_window_size

    def ratio(self) -> torch.Tensor:
        """The share as the operators take it."""
        return torch.tensor(self.share(self.config.dynamic_mask_ratio), dtype=torch.float64)

    def operator(self, inputs: tuple[Any, ...], cache: tuple[Any, ...], heads: tuple[int, int]) -> Any:
        config = self.config
        scale = config.head_dim**-0.5
        return ratio_mask_attention(*inputs, self.ratio(), *cache, *heads, self.window(), scale)
