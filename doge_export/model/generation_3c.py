"""Generation 3c: as the current one, but a mask for each query head, and no norms of queries and keys. Its
experts are the current ones."""

from typing import Any

from doge_export.model.feed_forward import CDMoE
from doge_export.model.head_attention import HeadAttention
from doge_export.model.operators.head_mask_attention import head_mask_attention

__all__ = ["Attention", "CDMoE"]


class Attention(HeadAttention):
    """The keep_window_size keys with the largest dt, for each query head and query."""

    def operator(self, inputs: tuple[Any, ...], cache: tuple[Any, ...], heads: tuple[int, int]) -> Any:
        config = self.config
        return head_mask_attention(*inputs, *cache, *heads, config.keep_window_size, config.head_dim**-0.5)
