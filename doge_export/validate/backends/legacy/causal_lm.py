"""The model around the layers: the same in all generations. Its parts have the names that transformers' have,
and so what watches those watches these."""

from typing import Any

import torch

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.core.tensor_shapes import optional_shapes
from doge_export.validate.backends.legacy import generation_1, generation_2, generation_3, queries

__all__ = ["LegacyDoge", "load_legacy"]

_GENERATIONS: dict[str, tuple[Any, Any]] = {
    "1": (generation_1.Attention, generation_1.Experts),
    "2": (generation_2.Attention, generation_2.Experts),
    "3a-filled": (generation_3.FilledRatioAttention, generation_2.Experts),
    "3a": (generation_3.RatioAttention, generation_2.Experts),
    "3a-mixed": (generation_3.RatioAttention, queries.MixedExperts),
    "3a-joint": (generation_3.RatioAttention, queries.JointExperts),
    "3a-single": (generation_3.RatioAttention, queries.SingleExperts),
    "3b-single": (generation_3.WindowedRatioAttention, queries.SingleExperts),
    "3b-single-positional": (generation_3.WindowedRatioAttention, queries.RankedSingleExperts),
    "3b-positional": (generation_3.WindowedRatioAttention, generation_3.RankedExperts),
    "3b": (generation_3.WindowedRatioAttention, generation_3.Experts),
    "3c": (generation_3.TopAttention, generation_3.Experts),
}


class Norm(torch.nn.Module):
    """RMSNorm, in float32."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Gated(torch.nn.Module):
    """down(act(gate x) * up x)"""

    def __init__(self, config: DogeConfig, activation: Any) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = torch.nn.Linear(hidden, inner, bias=bias)
        self.up_proj = torch.nn.Linear(hidden, inner, bias=bias)
        self.down_proj = torch.nn.Linear(inner, hidden, bias=bias)
        self.act = activation

    def forward(self, x: torch.Tensor) -> Any:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    """h = res1 * h + attention(norm h); h = res2 * h + ffn(norm h); in generation 1 both res are 1"""

    def __init__(self, config: DogeConfig, index: int, activation: Any) -> None:
        super().__init__()
        attention, experts = _GENERATIONS[config.generation]
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = Norm(size, epsilon)
        self.self_attn = attention(config, index)
        weighed = not GENERATIONS[config.generation].inner
        self.input_residual = torch.nn.Parameter(torch.ones(size)) if weighed else 1.0
        self.post_attention_layernorm = Norm(size, epsilon)
        gated = Gated(config, activation)
        self.mlp = experts(config, gated) if config.is_moe else gated
        self.post_attention_residual = torch.nn.Parameter(torch.ones(size)) if weighed else 1.0

    def forward(self, h: torch.Tensor, mask: torch.Tensor, rotation: Any, cache: Any) -> torch.Tensor:
        h = self.input_residual * h + self.self_attn(self.input_layernorm(h), mask, rotation, cache)
        output = self.mlp(self.post_attention_layernorm(h))
        if isinstance(output, tuple):  # what experts were chosen by is in it too
            output = output[0]
        result: torch.Tensor = self.post_attention_residual * h + output
        return result


class Model(torch.nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: DogeConfig, settings: Any) -> None:
        super().__init__()
        from transformers.activations import ACT2FN
        from transformers.models.doge.modeling_doge import DogeRotaryEmbedding

        activation = ACT2FN[config.hidden_act]
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(
            Layer(config, index, activation) for index in range(config.num_hidden_layers)
        )
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = DogeRotaryEmbedding(settings)


class Output:
    """The result of a call, as transformers gives it."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class LegacyDoge(torch.nn.Module):
    """A Doge of a generation before transformers', called as transformers' model is called."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        from transformers import DogeConfig as Settings

        self.config = Settings(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=dict(config.rope),
        )
        self.model = Model(config, self.config)
        if not config.tie_word_embeddings:
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Any,
        use_cache: bool = True,
        logits_to_keep: Any = 0,
    ) -> Output:
        h = self.model.embed_tokens(input_ids)
        rotation = self.model.rotary_emb(h, position_ids)
        length, keys = input_ids.shape[1], attention_mask.shape[1]
        lowest = torch.finfo(h.dtype).min
        later = torch.arange(keys) > torch.arange(keys - length, keys)[:, None]
        hidden = later[None, None] | (attention_mask[:, None, None] == 0)
        mask = torch.zeros(hidden.shape, dtype=h.dtype).masked_fill(hidden, lowest)
        for layer in self.model.layers:
            h = layer(h, mask, rotation, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        h = self.model.norm(h)[:, kept]
        head = self.lm_head.weight if hasattr(self, "lm_head") else self.model.embed_tokens.weight
        return Output(torch.nn.functional.linear(h, head))


def load_legacy(checkpoint: Checkpoint) -> LegacyDoge:
    """The judge with the checkpoint's weights, in float32.

    Raises:
        DogeExportError: a tensor is missing or has another shape.
    """
    model = LegacyDoge(checkpoint.config)
    for name, size in optional_shapes(checkpoint.config, checkpoint.shapes, checkpoint.shapes).items():
        parent, _, part = name.rpartition(".")
        setattr(model.get_submodule(parent), part, torch.nn.Parameter(torch.empty(size)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = checkpoint.shapes.get(name)
            if shape != tuple(parameter.shape):
                raise DogeExportError(
                    f"{name} is {shape} in {checkpoint.folder}, and config.json makes it "
                    f"{tuple(parameter.shape)}.",
                    "Take config.json and weights from the same checkpoint.",
                )
            parameter.copy_(checkpoint.tensor(name))
    return model.eval()
