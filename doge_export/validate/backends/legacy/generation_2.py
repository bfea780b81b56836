"""Generation 2 (LoserCheems/WonderfulMatrices, 8de2f6f to 823c389), and the experts of 3a, which are its."""

from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.validate.backends.legacy.attention import EarlierAttention

__all__ = ["Attention", "Experts"]


class Attention(EarlierAttention):
    """Where exp(A * softplus(dt)) < 1, that key's column of the mask is finfo.min for the head, in every
    row."""

    repeats_first = True

    def prepare_dynamic_mask(self, *, dt_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(attention_mask.dtype).min
        return attention_mask.masked_fill((dt_states < 1.0)[:, :, None, :], lowest)


class Experts(torch.nn.Module):
    """Product keys: the best k of each half by queries, the best k of their sums."""

    def __init__(self, config: DogeConfig, gated: Any) -> None:
        super().__init__()
        self.settings = config
        for name, part in gated.named_children():  # the tensors have no "gated" in their names
            setattr(self, name, part)
        self.gated = (gated,)
        self.top_k, self.num_keys = config.num_experts_per_tok, int(config.num_experts**0.5)
        heads, size = config.expert_heads, config.expert_retrieval_size
        self.queries = torch.nn.Linear(config.hidden_size, heads * size, bias=False)
        self.keys = torch.nn.Parameter(torch.zeros(heads, self.num_keys, 2, size // 2))
        self.down_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = torch.nn.Embedding(config.num_experts, config.hidden_size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length, _ = x.shape
        q = self.queries(x).view(batch, length, 2, self.settings.expert_heads, -1)
        sim = torch.einsum("btphn,hkpn->pbthk", q, self.keys)
        (a, b), (i, j) = torch.topk(sim, self.top_k, dim=-1)
        scores = (a[..., :, None] + b[..., None, :]).flatten(-2)
        numbers = (i[..., :, None] * self.num_keys + j[..., None, :]).flatten(-2)
        best, indices = torch.topk(scores, self.top_k, dim=-1)
        e = numbers.gather(-1, indices)  # [B, T, heads, k]
        w = self.weigh((x[:, :, None, None] * self.down_embed(e)).sum(-1), best.softmax(-1))
        routed = (w[..., None] * self.up_embed(e)).sum((2, 3))
        return self.shared(x) + routed, sim.flatten(1, 3)

    def weigh(self, products: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gated[0].act(products) * weights
        return result

    def shared(self, x: torch.Tensor) -> Any:
        return self.gated[0](x)
