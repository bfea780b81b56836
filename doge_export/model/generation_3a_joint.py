"""Generation 3a in the night to 23 February 2025: the experts of all retrievals share one softmax."""

import torch

from doge_export.model import generation_3a_mixed
from doge_export.model.generation_3a import Attention

__all__ = ["Attention", "CDMoE"]


class CDMoE(generation_3a_mixed.CDMoE):
    """As until then, but scores are viewed as if the tokens came before the heads, where they come after, so
    that a token's are those of several; and the weights of all its experts add up to 1."""

    def by_token(self, scores: torch.Tensor) -> torch.Tensor:
        if self.per_token:
            return super().by_token(scores)
        return scores.reshape(2, -1, self.config.expert_heads, self.config.num_keys).permute(1, 2, 0, 3)

    def weigh(self, weights: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        heads = self.config.expert_heads
        # The best expert of a retrieval scores the best of both halves, and weighs the most.
        best = scores.amax(-1).sum(-1)  # [tokens, heads]
        sums = best - weights.amax(-1).reshape(-1, heads).log()  # of the exponentials, as logarithms
        return weights.reshape(-1, heads, weights.shape[-1]) * sums.softmax(-1).unsqueeze(-1)
