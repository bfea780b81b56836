"""PlaceMaskAttention: attention in which a head sees a key or not by the key's place (generation 1).

`dynamic_mask` has a number for each head and each place in the cache, padding included. Where it is 0 the key
is masked for that head and every query: finfo.min stands for its score. Nothing is added to the others, and
beyond its end nothing is masked; the original fails there. A query whose keys are all masked averages over
all keys there are, later ones and padding included. Queries are rotated, and keys are not: the original gives
the queries to its rotation twice. Inputs and outputs: `head_attention.py`.

Source: LoserCheems/WonderfulMatrices, 9af5c82.
"""

import onnx_ir as ir

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.head_attention import HeadBody, HeadMask, define

__all__ = ["MASK", "OPERATOR"]


def _body(parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value]) -> ir.Value:
    return parts.unless(b.Equal(cached.dt, b.const(0, parts.numpy)), cached.visible)


MASK = HeadMask(_body, by_place=True)
OPERATOR = define("PlaceMaskAttention", "doge::place_mask_attention", MASK)
