"""The experts of 7 February to 17 March 2025, found by queries and keys (SmallDoges/small-doge, 70cd8b0 to
a6b62a1). A view of all queries in which halves and heads come first gives a token parts of other tokens'
queries; with `per_token` each gets its own."""

from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.validate.backends.legacy.generation_3 import Experts, RankedExperts

__all__ = ["JointExperts", "MixedExperts", "RankedSingleExperts", "SingleExperts"]


class MixedExperts(Experts):
    """70cd8b0: heads of queries, keys [heads, R, n] viewed as [2, heads, R / 2, n], a softmax a head."""

    per_token = False
    mlp_scaling: torch.Tensor | None
    moe_scaling: torch.Tensor | None

    def add_router(self, config: DogeConfig) -> None:
        self.heads, self.size = config.expert_heads, config.expert_retrieval_size
        self.queries = torch.nn.Linear(config.hidden_size, self.heads * self.size, bias=False)
        self.keys = torch.nn.Parameter(torch.zeros(self.shape_of_keys()))
        for name in ("mlp_scaling", "moe_scaling"):
            self.register_parameter(name, None)

    def shape_of_keys(self) -> tuple[int, ...]:
        return self.heads, self.size, self.num_keys

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[2, B * S * heads, keys]"""
        tokens = x.shape[0] * x.shape[1]
        q = self.queries(x).view(2, self.heads, tokens, -1)
        if self.per_token:
            q = q.view(tokens, 2, self.heads, -1).permute(1, 2, 0, 3)
        sim = torch.matmul(q, self.keys.view(2, self.heads, -1, self.num_keys))
        return self.by_token(sim).flatten(1, 2)

    def by_token(self, sim: torch.Tensor) -> torch.Tensor:
        """[2, tokens, heads, keys] of [2, heads, tokens, keys]"""
        return sim.transpose(1, 2)

    def sum(self, shared: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
        if self.mlp_scaling is None or self.moe_scaling is None:
            return shared + routed
        return (shared * self.mlp_scaling) + (routed * self.moe_scaling)


class JointExperts(MixedExperts):
    """cd76a65: keys [2 * heads, R / 2, n]; products [2 * heads, tokens, n] are viewed as [2, tokens, heads,
    n], which gives a token those of others once more; and one softmax over the experts of all heads."""

    def shape_of_keys(self) -> tuple[int, ...]:
        return 2 * self.heads, self.size // 2, self.num_keys

    def by_token(self, sim: torch.Tensor) -> torch.Tensor:
        if self.per_token:
            return super().by_token(sim)
        _, heads, tokens, keys = sim.shape
        return sim.contiguous().view(2, tokens, heads, keys)

    def weights(self, best: torch.Tensor) -> torch.Tensor:
        return best.view(-1, self.heads * best.shape[-1]).softmax(-1)


class SingleExperts(JointExperts):
    """be72a13: the same with one head. From 25900d4 to 0b40382 MLP and experts are weighed."""


class RankedSingleExperts(SingleExperts):
    """a6b62a1: with the two mistakes of RankedExperts."""

    def choose(self, logits: torch.Tensor, count: int) -> tuple[Any, Any]:
        return RankedExperts.choose(self, logits, count)  # type: ignore[arg-type]
