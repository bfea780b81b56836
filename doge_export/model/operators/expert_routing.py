"""ExpertRouting in torch; `doge_export.graph.operators.expert_routing` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.expert_routing import OPERATOR
from doge_export.model.operators.custom import implementation
from doge_export.model.operators.topk import stable_topk

__all__ = ["expert_routing", "routing_shapes"]


def routing_shapes(x: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty indices and weights of the tokens of `router_logits`."""
    batch, length, _ = x.router_logits.shape
    shape = (batch * length, x.num_experts_per_tok)
    return x.router_logits.new_empty(shape, dtype=torch.int64), x.router_logits.new_empty(shape)


@implementation(OPERATOR, routing_shapes)
def expert_routing(x: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts both halves, sums every pair, and takes the best."""
    if x.per_token:
        halves = x.router_logits.reshape(-1, 2, x.num_keys).transpose(0, 1)
    else:
        halves = x.router_logits.reshape(2, -1, x.num_keys)
    (first, second), (first_index, second_index) = stable_topk(halves, x.num_keys)
    scores = (first[..., :, None] + second[..., None, :]).flatten(-2)
    experts = (first_index[..., :, None] * x.num_keys + second_index[..., None, :]).flatten(-2)
    scores, ranks = stable_topk(scores, x.num_experts_per_tok)
    weights = torch.softmax(scores, dim=-1)
    if x.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return experts.gather(-1, ranks), weights
