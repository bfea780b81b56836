"""SignMaskAttention: attention in which a head sees a key or not by the sign of A (generation 2).

dt = exp(A * softplus(dt_proj(values of the position, repeated for each query head))). Where dt is below 1 the
key is masked for that head and every query: finfo.min stands for its score. Nothing is added to the others.
So with A at least 0 the mask does nothing, and with A below 0 nearly every key is masked, unless softplus is
so small that dt rounds to 1. A head that masks all keys has the scores absorbed by finfo.min, and averages
over all keys there are, later ones and padding included. Inputs and outputs: `head_attention.py`.

Source: LoserCheems/WonderfulMatrices, 8de2f6f to 823c389.
"""

import onnx_ir as ir

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.head_attention import HeadBody, HeadMask, define

__all__ = ["MASK", "OPERATOR"]


def _body(parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value]) -> ir.Value:
    return parts.unless(b.Less(cached.dt, b.const(1, parts.numpy)), cached.visible)


MASK = HeadMask(_body, repeated=True)
OPERATOR = define("SignMaskAttention", "doge::sign_mask_attention", MASK)
