"""ExpertRouting: which experts of a Doge CDMoE layer serve a token, and with what weight.

Product keys: a token has two rows of router logits, one per half; expert i * num_keys + j scores
x[i] + y[j]; the `num_experts_per_tok` best of all pairs are taken, ties by the lower place in the
descending order of both halves, and their scores go through a softmax.

Source: Doge, arXiv 2412.11834, as transformers >= 5.23 `DogeCDMoE` computes it. Its
`router_logits.view(2, tokens, num_keys)` hands a token rows of other tokens, future ones and other
rows of the batch included; `per_token` gives each token its own two halves instead. Both are the same
for a single token.

| input | shape |
|---|---|
| router_logits | [batch, sequence, 2 * num_keys] |

| output | shape | |
|---|---|---|
| indices | int64 [batch * sequence, num_experts_per_tok] | |
| weights | [batch * sequence, num_experts_per_tok] | in the logits' dtype |
"""

import onnx_ir as ir

from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions, Operator, Port, ports

__all__ = ["OPERATOR"]


def _body(options: BodyOptions) -> ir.Function:
    """Builds the operator of standard operators, without the pairs that cannot win.

    A pair (i, j) of the sorted halves has (i + 1) * (j + 1) - 1 pairs that score no less and stand
    before it, so only the best `num_experts_per_tok` of each half can be in the result.
    """
    b = BodyBuilder(OPERATOR.input_names)
    axis0 = b.const([0])
    keys, k = b.int_attribute("num_keys"), b.int_attribute("num_experts_per_tok")
    keys_1, k_1 = b.Unsqueeze(keys, axis0), b.Unsqueeze(k, axis0)
    logits = b.inputs["router_logits"]
    if options.per_token:
        halves = b.Reshape(logits, b.Concat(b.const([-1, 2]), keys_1, axis=0))
        halves = b.Transpose(halves, perm=[1, 0, 2])
    else:
        halves = b.Reshape(logits, b.Concat(b.const([2, -1]), keys_1, axis=0))
    count = b.Min(k, keys)
    count_1 = b.Unsqueeze(count, axis0)
    best, index = b.TopK(halves, count_1, axis=-1, outputs=2)
    x, y = b.Split(best, axis=0, num_outputs=2, outputs=2)  # [1, tokens, count] each
    index_x, index_y = b.Split(index, axis=0, num_outputs=2, outputs=2)
    pairs = b.Add(b.Unsqueeze(x, b.const([3])), b.Unsqueeze(y, b.const([2])))
    scores, ranks = b.TopK(b.Reshape(pairs, b.const([0, 0, -1])), k_1, axis=-1, outputs=2)
    experts = b.Add(
        b.Mul(b.GatherElements(index_x, b.Div(ranks, count), axis=-1), keys),
        b.GatherElements(index_y, b.Mod(ranks, count), axis=-1),
    )
    weights = b.Softmax(scores, axis=-1)
    if options.norm_topk_prob:
        weights = b.Div(weights, b.ReduceSum(weights, b.const([-1]), keepdims=1))
    outputs = {"indices": b.Squeeze(experts, axis0), "weights": b.Squeeze(weights, axis0)}
    return b.function(OPERATOR.name, outputs, options.opset)


OPERATOR = Operator(
    name="ExpertRouting",
    torch_name="doge::expert_routing",
    inputs=ports("router_logits"),
    outputs=(Port("indices", "int64"), Port("weights")),
    attributes={"num_keys": int, "num_experts_per_tok": int, "per_token": int, "norm_topk_prob": int},
    body=_body,
)
