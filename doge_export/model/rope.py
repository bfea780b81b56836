"""Rotary embedding: cos and sin of the new tokens, for every rope type the reference takes.

Sources: transformers' `modeling_rope_utils` (behaviour), YaRN (arXiv 2309.00071), LongRoPE
(arXiv 2402.13753), Llama 3.1's scaling, dynamic NTK scaling.

`dynamic` and `longrope` choose their frequencies by the largest position of the call, batch-wide. The
reference's dynamic rope also remembers the largest length it has seen; over the calls of one sequence,
which only grows, that memory changes nothing, and the graph needs none. Where one call of the reference is
made in pieces, each of them is told the length of the whole, `rope_length`, and has its frequencies.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from doge_export.core.config import DogeConfig

__all__ = ["RotaryEmbedding"]


def _base_frequencies(base: float, head_dim: int) -> torch.Tensor:
    """base^(-2i / head_dim), float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (base**exponents)


def _default(rope: Mapping[str, Any], config: DogeConfig) -> tuple[torch.Tensor, float]:
    return _base_frequencies(rope["rope_theta"], config.head_dim), 1.0


def _linear(rope: Mapping[str, Any], config: DogeConfig) -> tuple[torch.Tensor, float]:
    return _base_frequencies(rope["rope_theta"], config.head_dim) / rope["factor"], 1.0


def _llama3(rope: Mapping[str, Any], config: DogeConfig) -> tuple[torch.Tensor, float]:
    """Short wavelengths stay, long ones are stretched by `factor`, those between are blended."""
    frequencies = _base_frequencies(rope["rope_theta"], config.head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequencies
    stretched = torch.where(wavelength > original / low, frequencies / factor, frequencies)
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * stretched / factor + blend * stretched
    between = ~(wavelength < original / high) & ~(wavelength > original / low)
    return torch.where(between, blended, stretched), 1.0


def _yarn(rope: Mapping[str, Any], config: DogeConfig) -> tuple[torch.Tensor, float]:
    """Fast rotations extrapolate, slow ones interpolate, with a linear ramp between."""
    dim, base, factor = config.head_dim, rope["rope_theta"], rope["factor"]
    original = rope["original_max_position_embeddings"]

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = rope.get("attention_factor")
    if attention is None:
        weight, weight_all = rope.get("mscale"), rope.get("mscale_all_dim")
        if weight and weight_all:
            attention = temperature(factor, weight) / temperature(factor, weight_all)
        else:
            attention = temperature(factor)

    def dimension_of(rotations: float) -> float:
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(base))

    low = dimension_of(rope.get("beta_fast") or 32)
    high = dimension_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    powers = base ** (torch.arange(0, dim, 2).float() / dim)
    return 1.0 / (factor * powers) * (1 - keep) + 1.0 / powers * keep, float(attention)


def _longrope(
    rope: Mapping[str, Any], config: DogeConfig, key: str = "short_factor"
) -> tuple[torch.Tensor, float]:
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor", config.max_position_embeddings / original)
    attention = rope.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    divisors = torch.tensor(rope[key], dtype=torch.float32)
    return 1.0 / (divisors * rope["rope_theta"] ** exponents), float(attention)


_FREQUENCIES: dict[str, Callable[[Mapping[str, Any], DogeConfig], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "dynamic": _default,  # up to max_position_embeddings
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


class RotaryEmbedding(torch.nn.Module):
    """position_ids int64 [batch, sequence] -> cos and sin [batch, sequence, head_dim / 2]."""

    inv_freq: torch.Tensor
    long_inv_freq: torch.Tensor

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        self.rope_type: str = config.rope["rope_type"]
        self.rope, self.config = config.rope, config
        inv_freq, self.attention_scaling = _FREQUENCIES[self.rope_type](config.rope, config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        if self.rope_type == "longrope":
            self.register_buffer(
                "long_inv_freq", _longrope(config.rope, config, "long_factor")[0], persistent=False
            )
        elif self.rope_type == "dynamic":
            exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
            self.register_buffer("exponents", exponents, persistent=False)

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies are other ones in a long text."""
        return self.rope_type in ("dynamic", "longrope")

    @property
    def constants(self) -> dict[str, float]:
        """The numbers of the formula beside the frequencies, for a kernel that computes it: cos and sin are
        multiplied with `scaling`; a call that reaches beyond `limit` positions (0: none can) has other
        frequencies; the dynamic rope's are (theta * (factor * length / limit - offset)^power)^-e."""
        kind, rope = self.rope_type, self.rope
        constants = dict.fromkeys(("limit", "factor", "offset", "theta", "power"), 0.0)
        if kind == "longrope":
            constants["limit"] = rope["original_max_position_embeddings"]
        elif kind == "dynamic":
            factor, dim = rope["factor"], self.config.head_dim
            constants |= {
                "limit": self.config.max_position_embeddings,
                "factor": factor,
                "offset": factor - 1,
            }
            constants |= {"theta": rope["rope_theta"], "power": dim / (dim - 2)}
        return {
            name: float(value) for name, value in {**constants, "scaling": self.attention_scaling}.items()
        }

    def _frequencies(self, position_ids: torch.Tensor, rope_length: torch.Tensor | None) -> torch.Tensor:
        if not self.depends_on_length:
            return self.inv_freq
        length = position_ids.max() + 1
        if rope_length is not None:
            length = torch.maximum(length, rope_length)
        if self.rope_type == "longrope":
            limit = self.rope["original_max_position_embeddings"]
            return torch.where(length > limit, self.long_inv_freq, self.inv_freq)
        limit, factor, dim = self.config.max_position_embeddings, self.rope["factor"], self.config.head_dim
        # Below the limit the ratio is exactly 1; keep it there, where it has no power below 1 either.
        ratio = (factor * torch.clamp(length, min=limit).float() / limit) - (factor - 1)
        base = self.rope["rope_theta"] * ratio ** (dim / (dim - 2))
        exponents: torch.Tensor = self.get_buffer("exponents")
        return torch.where(length > limit, 1.0 / (base**exponents), self.inv_freq)

    def forward(
        self, position_ids: torch.Tensor, dtype: torch.dtype, rope_length: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        phases = position_ids[..., None].float() * self._frequencies(position_ids, rope_length)
        cos, sin = phases.cos() * self.attention_scaling, phases.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)
