"""RankRouting in torch; `doge_export.graph.operators.rank_routing` specifies it."""

from types import SimpleNamespace

import torch

from doge_export.graph.operators.rank_routing import OPERATOR
from doge_export.model.operators.custom import implementation
from doge_export.model.operators.expert_routing import routing_shapes
from doge_export.model.operators.topk import stable_topk

__all__ = ["rank_routing"]


@implementation(OPERATOR, routing_shapes)
def rank_routing(x: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts the first half, sums every logit and key, and takes the best."""
    rows = x.router_logits.reshape(-1, x.num_keys)
    first = rows[::2] if x.per_token else rows[: len(rows) // 2]
    logits, keys = stable_topk(first, x.num_keys)
    scores = (logits[..., :, None] + keys[..., None, :]).flatten(-2)
    best, experts = stable_topk(scores, x.num_experts_per_tok)
    return experts, torch.softmax(best, dim=-1)
