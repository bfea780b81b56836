"""HeadMaskAttention: dynamic mask attention with a mask for each query head (generation 3c).

As DynamicMaskAttention, but for its heads: of the keys that a query may see, each query head keeps the
`keep_window_size` with the largest dt, ties by the lower position; dt is added to the scores of those that
stay, and finfo.min stands for all others. Inputs and outputs: `head_attention.py`.

Source: SmallDoges/small-doge, 91b5298 to e5a2639.
"""

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.head_attention import HeadBody, HeadMask, define

__all__ = ["MASK", "OPERATOR"]


def _body(parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value]) -> ir.Value:
    ranked = b.Where(
        b.Unsqueeze(cached.visible, b.const([1])), b.Unsqueeze(cached.dt, b.const([2])), parts.lowest
    )
    if cached.exists is not None:
        ranked = b.Where(cached.exists, ranked, b.const(-np.inf, parts.numpy))
    return parts.keep_largest(ranked)


MASK = HeadMask(_body, attributes=("keep_window_size",))
OPERATOR = define("HeadMaskAttention", "doge::head_mask_attention", MASK)
