"""FilledMaskAttention: attention that drops a share of all keys there are, and fills in what a query may not
see (generation 3a until 23 January 2025).

As RatioMaskAttention without a window, but finfo.min takes the place of dt for a key that is dropped and for
one that the query may not see: nothing is -inf. A query whose visible keys are all dropped has its scores
absorbed by finfo.min, and averages over all keys there are, later ones and padding included.

The original cuts the columns of its causal mask to the number of new tokens. In a call of one token that
leaves the mask of the first place in the cache, and it holds for every key: a row that begins with padding
masks all of its keys, and averages over them; any other row sees all of them. Between that and a call without
a past, which is cut to what it has, the original fails; here such a call sees what is not later than it.
Inputs and outputs: `head_attention.py`, and `ratio`, float64 [], 0 for none.

Source: LoserCheems/WonderfulMatrices, 2355317 to 06d9cad.
"""

import onnx_ir as ir

from doge_export.graph.operators.cached_keys import CachedKeys
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.head_attention import HeadBody, HeadMask, define
from doge_export.graph.operators.ratio_mask_attention import without_smallest
from doge_export.graph.operators.schema import Port

__all__ = ["MASK", "OPERATOR"]


def _body(parts: HeadBody, b: BodyBuilder, cached: CachedKeys[ir.Value]) -> ir.Value:
    first = b.Slice(b.inputs["attention_mask"], b.const([0]), b.const([1]), b.const([1]))
    first = b.Cast(b.Unsqueeze(first, b.const([2])), to=ir.DataType.BOOL)
    one_token = b.Equal(parts.length, b.const(1))
    visible = b.Or(b.And(one_token, first), b.And(b.Not(one_token), cached.visible))
    bias = without_smallest(parts, b, cached, b.const(0))
    result: ir.Value = b.Where(b.Unsqueeze(visible, b.const([1])), bias, parts.lowest)
    return result


MASK = HeadMask(_body, inputs=(Port("ratio", "double"),))
OPERATOR = define("FilledMaskAttention", "doge::filled_mask_attention", MASK)
