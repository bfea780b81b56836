"""RankRouting: experts that are numbered by rank (generation 3b, 14 March to 14 April 2025).

The first half's router logits of a token, in descending order, are x[0] >= x[1] ..., and i[0], i[1] ... are
the keys that have them. Expert r * num_keys + s scores x[r] + i[s]: the r-th best logit plus the *number* of
the s-th best key. The `num_experts_per_tok` best are taken, ties by the lower number, and their scores go
through a softmax. So it is in the original, which unpacks values and positions of one half where both halves
were meant, and takes places in the ranking for experts: the second half of the logits has no effect.

Source: SmallDoges/small-doge, a6b62a1 to 515165e. Inputs and outputs are those of ExpertRouting, and so is
the reference's view, which hands a token rows of other tokens.
"""

import onnx_ir as ir

from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Operator, Port, ports

__all__ = ["OPERATOR"]


def _body(options: BodyOptions) -> ir.Function:
    """Builds the operator of standard operators, without the logits that cannot win: before expert
    r * num_keys + s there are r that score no less."""
    b = BodyBuilder(OPERATOR.input_names)
    axis0 = b.const([0])
    keys, k = b.int_attribute("num_keys"), b.int_attribute("num_experts_per_tok")
    keys_1, k_1 = b.Unsqueeze(keys, axis0), b.Unsqueeze(k, axis0)
    order = [-1, 2] if options.per_token else [2, -1]
    halves = b.Reshape(b.inputs["router_logits"], b.Concat(b.const(order), keys_1, axis=0))
    first = b.Gather(halves, b.const(0), axis=1 if options.per_token else 0)
    logits, numbers = b.TopK(first, keys_1, axis=-1, outputs=2)
    best = b.Slice(logits, axis0, b.Unsqueeze(b.Min(k, keys), axis0), b.const([1]))
    numbers = b.Cast(numbers, to=options.dtype)
    scores = b.Add(b.Unsqueeze(best, b.const([2])), b.Unsqueeze(numbers, b.const([1])))
    scores, experts = b.TopK(b.Reshape(scores, b.const([0, -1])), k_1, axis=-1, outputs=2)
    outputs = {"indices": experts, "weights": b.Softmax(scores, axis=-1)}
    return b.function(OPERATOR.name, outputs, options.opset)


OPERATOR = Operator(
    name="RankRouting",
    torch_name="doge::rank_routing",
    inputs=ports("router_logits"),
    outputs=(Port("indices", "int64"), Port("weights")),
    attributes={"num_keys": int, "num_experts_per_tok": int, "per_token": int},
    body=_body,
)
