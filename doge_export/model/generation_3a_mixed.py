"""Generation 3a from 7 to 22 February 2025: as 3a, but its experts are found by queries of several tokens."""

import torch

from doge_export.core.config import DogeConfig
from doge_export.core.tensor_shapes import keys_shape
from doge_export.model.feed_forward import MLP
from doge_export.model.generation_3a import Attention
from doge_export.model.operators.expert_routing import expert_routing

__all__ = ["Attention", "CDMoE"]


class CDMoE(MLP):
    """The MLP plus, for each of `expert_heads` retrievals, `num_experts_per_tok` one-row experts.

    The original views all tokens' queries as if the halves and heads came first, so that a token's are put
    together from those of several tokens; `per_token` gives each token its own. MLP and experts are weighed
    where the checkpoint has what with, which load_model puts in.
    """

    mlp_scaling: torch.Tensor | None
    moe_scaling: torch.Tensor | None

    def __init__(self, config: DogeConfig, per_token: bool) -> None:
        super().__init__(config)
        self.config, self.per_token = config, per_token
        width = config.expert_heads * config.expert_retrieval_size
        self.queries = torch.nn.Linear(config.hidden_size, width, bias=False)
        self.keys = torch.nn.Parameter(torch.zeros(keys_shape(config)))
        self.down_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.register_parameter("mlp_scaling", None)
        self.register_parameter("moe_scaling", None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        config = self.config
        parts, half = 2 * config.expert_heads, config.expert_retrieval_size // 2
        queries = self.queries(hidden_states)
        if self.per_token:
            queries = queries.reshape(-1, parts, half).transpose(0, 1)
        else:
            queries = queries.flatten().reshape(parts, -1, half)  # torch.export fixes a batch of `parts` else
        scores = self.by_token(queries @ self.keys.reshape(parts, half, config.num_keys))
        indices, weights = self.choose(scores)
        tokens = hidden_states.reshape(-1, config.hidden_size, 1)
        activations = (self.down_embed(indices) @ tokens).squeeze(-1)
        mixing = self.activation(activations) * weights
        experts: torch.Tensor = (mixing.unsqueeze(1) @ self.up_embed(indices)).reshape(hidden_states.shape)
        shared = super().forward(hidden_states)
        if self.mlp_scaling is None or self.moe_scaling is None:
            return shared + experts
        return shared * self.mlp_scaling + experts * self.moe_scaling

    def by_token(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores of the keys [2 * heads, tokens, num_keys] as [tokens, heads, 2, num_keys]."""
        return scores.reshape(2, self.config.expert_heads, -1, self.config.num_keys).permute(2, 1, 0, 3)

    def choose(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's experts and what they weigh, [tokens, heads * num_experts_per_tok]."""
        indices, weights = self.route(scores.reshape(1, -1, 2 * self.config.num_keys))
        width = self.config.expert_heads * self.config.num_experts_per_tok
        return indices.reshape(-1, width), self.weigh(weights, scores).reshape(-1, width)

    def route(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts of each retrieval, [tokens * heads, num_experts_per_tok], by [1, tokens * heads, 2 *
        num_keys]."""
        config = self.config
        routed: tuple[torch.Tensor, torch.Tensor] = expert_routing(
            scores, config.num_keys, config.num_experts_per_tok, 1, 0
        )
        return routed

    def weigh(self, weights: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the weights of experts from those in their own retrieval."""
        return weights
