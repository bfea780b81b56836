"""Generation 3b from 14 to 17 March 2025: as 3b-single, but its experts are numbered by their rank."""

import torch

from doge_export.model import generation_3a_mixed
from doge_export.model.generation_3b import Attention
from doge_export.model.operators.rank_routing import rank_routing

__all__ = ["Attention", "CDMoE"]


class CDMoE(generation_3a_mixed.CDMoE):
    """The MLP and its experts."""

    def route(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routed: tuple[torch.Tensor, torch.Tensor] = rank_routing(
            scores, self.config.num_keys, self.config.num_experts_per_tok, 1
        )
        return routed
