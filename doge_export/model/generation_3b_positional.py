"""Generation 3b from 17 March to 14 April 2025: as 3b, but its experts are numbered by their rank."""

import torch

from doge_export.model import feed_forward
from doge_export.model.generation_3b import Attention
from doge_export.model.operators.rank_routing import rank_routing

__all__ = ["Attention", "CDMoE"]


class CDMoE(feed_forward.CDMoE):
    """The MLP and its experts; a router's bias, where the checkpoint has one, is put in by load_model."""

    def route(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, count = self.config.num_keys, self.config.num_experts_per_tok
        routed: tuple[torch.Tensor, torch.Tensor] = rank_routing(
            router_logits, keys, count, int(self.per_token)
        )
        return routed
