"""The whole model: token ids and a cache in, logits and the cache out."""

from collections.abc import Sequence

import torch

from doge_export.core.config import DogeConfig
from doge_export.core.generations import GENERATIONS
from doge_export.model.feed_forward import MLP
from doge_export.model.generations import MODULES
from doge_export.model.norm import RMSNorm
from doge_export.model.projections import LayerCache
from doge_export.model.rope import RotaryEmbedding

__all__ = ["CACHE_KINDS", "DogeForExport"]

#: Cache kind -> the tensors a layer's cache is made of, by the names of the graph's inputs.
CACHE_KINDS: dict[str, tuple[str, ...]] = {
    "growing": ("key", "value"),
    "static": ("key", "value", "dt"),
    "bounded": ("key", "value", "dt", "position"),
}


class DecoderLayer(torch.nn.Module):
    """Attention and feed-forward, each behind an RMSNorm and a residual, which is weighed but in generation
    1."""

    def __init__(self, config: DogeConfig, per_token: bool) -> None:
        super().__init__()
        own, weighed = MODULES[config.generation], not GENERATIONS[config.generation].inner

        def residual() -> torch.nn.Parameter | float:
            return torch.nn.Parameter(torch.ones(config.hidden_size)) if weighed else 1.0

        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = own.Attention(config)
        self.input_residual = residual()
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = own.CDMoE(config, per_token) if config.is_moe else MLP(config)
        self.post_attention_residual = residual()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        past: LayerCache,
        cache_position: torch.Tensor | None,
        position_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, LayerCache]:
        attended, present = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, cos, sin, past, cache_position, position_ids
        )
        hidden_states = self.input_residual * hidden_states + attended
        mixed = self.mlp(self.post_attention_layernorm(hidden_states))
        return self.post_attention_residual * hidden_states + mixed, present


class Decoder(torch.nn.Module):
    """Embedding, layers and final norm: what the checkpoint calls `model`."""

    def __init__(self, config: DogeConfig, per_token: bool) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(
            DecoderLayer(config, per_token) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DogeForExport(torch.nn.Module):
    """A Doge language model whose cache is an argument and a result.

    Args of `forward`:
        input_ids, position_ids: int64 [batch, sequence] attention_mask: int64 [batch, past + sequence];
        static cache: [batch, slots]; bounded: [batch, sequence] past: per layer the tensors that CACHE_KINDS
        names, flat, layer by layer cache_position: int64 [batch], with a static cache only rope_length: int64
        [], the length of the text that this call is a part of, for the rope's choice of
            frequencies; None or less than what the call reaches: up to this call's end

    Returns: logits [batch, sequence, vocab], then the cache in the order of `past`.
    """

    def __init__(self, config: DogeConfig, routing: str = "reference", kv_cache: str = "growing") -> None:
        super().__init__()
        self.config, self.kv_cache = config, kv_cache
        self.model = Decoder(config, per_token=routing == "per-token")
        self.rotary_embedding = RotaryEmbedding(config)
        if not config.tie_word_embeddings:
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: Sequence[torch.Tensor],
        cache_position: torch.Tensor | None = None,
        rope_length: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        hidden_states = self.model.embed_tokens(input_ids)
        cos, sin = self.rotary_embedding(position_ids, hidden_states.dtype, rope_length)
        parts = len(CACHE_KINDS[self.kv_cache])
        presents: list[torch.Tensor] = []
        for index, layer in enumerate(self.model.layers):
            cache = LayerCache(*past[index * parts : (index + 1) * parts])
            hidden_states, present = layer(
                hidden_states, attention_mask, cos, sin, cache, cache_position, position_ids
            )
            presents.extend(present[:parts])
        hidden_states = self.model.norm(hidden_states)
        tied = self.config.tie_word_embeddings
        head = self.model.embed_tokens.weight if tied else self.lm_head.weight
        return (torch.nn.functional.linear(hidden_states, head), *presents)

    def empty_cache(self, batch: int, slots: int = 0) -> list[torch.Tensor]:
        """An empty growing cache, or a static or bounded one of `slots` slots."""
        config = self.config
        shape = (batch, config.num_key_value_heads, slots, config.head_dim)
        parameter = self.model.norm.weight

        def empty(part: str) -> torch.Tensor:
            if part == "position":
                return torch.full(shape[:3], -1)
            return parameter.new_zeros((batch, config.dt_heads, slots) if part == "dt" else shape)

        return [empty(part) for _ in range(config.num_hidden_layers) for part in CACHE_KINDS[self.kv_cache]]
