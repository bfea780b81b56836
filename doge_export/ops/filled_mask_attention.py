"""FilledMaskAttention: attention that drops a share of all keys there are, and fills in what a query may not
see (generation 3a until 23 January 2025).

As RatioMaskAttention without a window, but finfo.min takes the place of dt for a key that is dropped and for
one that the query may not see: nothing is -inf. A query whose visible keys are all dropped has its scores
absorbed by finfo.min, and averages over all keys there are, later ones and padding included.

The original cuts the columns of its causal mask to the number of new tokens. In a call of one token that
leaves the mask of the first place in the cache, and it holds for every key: a row that begins with padding
masks all of its keys, and averages over them; any other row sees all of them. Between that and a call without
a past, which is cut to what it has, the original fails; here such a call sees what is not later than it.
Inputs and outputs: doge_export.ops.head_attention, and `ratio`, float64 [], 0 for none.

Source: LoserCheems/WonderfulMatrices, 2355317 to 06d9cad.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from doge_export.ops.cached_keys import CachedKeys
from doge_export.ops.function import BodyBuilder
from doge_export.ops.head_attention import HeadBody, HeadMask, define
from doge_export.ops.ratio_mask_attention import without_smallest, without_smallest_body

__all__ = ["OPERATOR", "filled_mask_attention"]


def _bias(held: CachedKeys, x: Mapping[str, Any], lowest: float) -> torch.Tensor:
    one_token = x["query"].shape[1] == 1
    visible = (x["attention_mask"][:, :1, None] != 0) if one_token else held.visible
    return torch.where(visible[:, None], without_smallest(held, x["ratio"], 0, lowest), lowest)


def _body(parts: HeadBody, b: BodyBuilder, held: CachedKeys) -> ir.Value:
    first = b.Slice(b.inputs["attention_mask"], b.const([0]), b.const([1]), b.const([1]))
    first = b.Cast(b.Unsqueeze(first, b.const([2])), to=ir.DataType.BOOL)
    one_token = b.Equal(parts.length, b.const(1))
    visible = b.Or(b.And(one_token, first), b.And(b.Not(one_token), held.visible))
    bias = without_smallest_body(parts, b, held, b.const(0))
    result: ir.Value = b.Where(b.Unsqueeze(visible, b.const([1])), bias, parts.lowest)
    return result


filled_mask_attention, OPERATOR = define(
    "FilledMaskAttention", "doge::filled_mask_attention", HeadMask(_bias, _body, inputs=("ratio",))
)
