"""The table of cases that every body of an operator is run through, and the inputs each one stands for.

`draw` makes the inputs; a case says only what is special about it. Exact cases have values and weights
that are small multiples of a power of two, so that equal keys have equal dt whatever the order of a sum.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy.typing as npt
import torch

__all__ = ["ATTENTION_CASES", "ROUTING_CASES", "AttentionCase", "RoutingCase", "as_numpy", "draw"]

ATTRIBUTES = ("num_heads", "num_kv_heads", "keep_window_size", "sliding_window", "scale", "epsilon")


def as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's own memory; bfloat16, which numpy lacks, as that of ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    return tensor.numpy()


@dataclass(frozen=True)
class AttentionCase:
    """`mask`: per row how many leading slots hold padding, or "holes" for zeros anywhere.
    `slots` and `position`: a static cache and, per row, the slot of the first new token.
    `values`: "random", "exact" (ties are likely), "equal" (all rows the same).
    `A`: "random", "zero", "negative"."""

    name: str
    past: int = 0
    length: int = 1
    batch: int = 1
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 8
    window: int = 8
    sliding: int = 0
    mask: tuple[int, ...] | str = ()
    slots: int = 0
    position: tuple[int, ...] = ()
    dt_bias: float | None = None
    values: str = "random"
    A: str = "random"
    dtype: torch.dtype = torch.float32

    @property
    def static(self) -> bool:
        return self.slots > 0

    @property
    def total(self) -> int:
        """Slots that attention_mask speaks of."""
        return self.slots or self.past + self.length

    @property
    def ties(self) -> bool:
        return self.values != "random" or self.A == "zero"

    @property
    def attributes(self) -> dict[str, Any]:
        scale = self.head_dim**-0.5
        numbers = (*self.heads, self.window, self.sliding, scale, 1e-6)
        return dict(zip(ATTRIBUTES, numbers, strict=True))


def draw(case: AttentionCase, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """The operator's inputs by name, in the order of the schema."""
    rng = torch.Generator().manual_seed(seed)
    batch, length, dim = case.batch, case.length, case.head_dim
    heads, kv_heads = case.heads
    exact = case.values != "random"

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=rng).float()

    def states(*shape: int) -> torch.Tensor:
        if case.values == "equal":
            return integers(-1, 1, shape[-1]).expand(shape).contiguous()
        return integers(-1, 1, *shape) if exact else normal(*shape)

    slots = case.slots or case.past
    value = states(batch, length, kv_heads * dim)
    past_value = states(batch, slots, kv_heads, dim).transpose(1, 2).contiguous()
    if case.values == "equal":
        past_value = value[:1, :1].reshape(1, 1, kv_heads, dim).expand(batch, slots, -1, -1).transpose(1, 2)
        past_value = past_value.contiguous()
    dt_weight = (
        integers(-1, 1, kv_heads, kv_heads * dim) / 4 if exact else normal(kv_heads, kv_heads * dim) / 4
    )
    A = {
        "random": torch.tensor([0.5, -0.25, 1.0, -1.5])[:kv_heads],
        "zero": torch.zeros(kv_heads),
        "negative": -torch.ones(kv_heads),
    }[case.A]
    mask = torch.ones(batch, case.total, dtype=torch.int64)
    if case.mask == "holes":
        mask = torch.randint(0, 2, mask.shape, generator=rng)
    else:
        for row, count in enumerate(case.mask):
            mask[row, :count] = 0
    angles = normal(batch, length, dim // 2)
    inputs: dict[str, torch.Tensor | None] = {
        "query": normal(batch, length, heads * dim),
        "key": normal(batch, length, kv_heads * dim),
        "value": value,
        "past_key": normal(batch, kv_heads, slots, dim),
        "past_value": past_value,
        "attention_mask": mask,
        "cos": angles.cos(),
        "sin": angles.sin(),
        "q_norm": 1 + normal(dim) / 10,
        "k_norm": 1 + normal(dim) / 10,
        "dt_weight": dt_weight,
        "dt_bias": torch.zeros(kv_heads)
        if case.dt_bias is None
        else case.dt_bias + integers(-2, 2, kv_heads) / 4,
        "A": A,
        "past_dt": None,
        "cache_position": None,
    }
    if case.static:
        # Tied cases: 1 is the dt of a key where A is 0, so that old keys tie with new ones.
        past_dt = (
            2 ** integers(-1, 1, batch, kv_heads, slots) if exact else normal(batch, kv_heads, slots).exp()
        )
        position = torch.tensor(case.position)
        stale = torch.arange(slots) >= position[:, None]
        for name in ("past_key", "past_value"):
            inputs[name] = torch.where(stale[:, None, :, None], 1e4, inputs[name])
        inputs["past_dt"] = torch.where(stale[:, None], 6e4, past_dt)
        inputs["cache_position"] = position
    return {
        name: tensor.to(case.dtype) if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


_W = 8
_GROWING = [
    *(AttentionCase(f"prefill {n}", length=n) for n in (1, 2, _W - 1, _W, _W + 1, 3 * _W)),
    *(AttentionCase(f"one token after {n}", past=n) for n in (1, _W - 2, _W - 1, _W, _W + 1, 5 * _W + 3)),
    AttentionCase("several tokens across the window", past=_W - 3, length=6),
    AttentionCase("several tokens beyond the window", past=2 * _W, length=5),
    AttentionCase("window of one", length=9, window=1),
    AttentionCase("heads 8/1", past=3, length=12, heads=(8, 1), head_dim=4),
    AttentionCase("heads 4/4", past=3, length=12, heads=(4, 4)),
    AttentionCase("heads 1/1, head_dim 2", past=3, length=12, heads=(1, 1), head_dim=2),
    AttentionCase("heads 6/3, head_dim 6", past=3, length=12, heads=(6, 3), head_dim=6),
    AttentionCase("dt_bias", length=12, dt_bias=0.0),
    AttentionCase("dt_bias where softplus is the identity", length=12, dt_bias=21.0, A="negative"),
    AttentionCase("dt_bias where softplus vanishes", length=12, dt_bias=-9.0),
    AttentionCase("batch, left padding", length=14, batch=3, mask=(0, 2, 5)),
    AttentionCase("batch, left padding, decode", past=13, batch=3, mask=(0, 2, 11)),
    AttentionCase("padding reaches into the new tokens", past=4, length=9, batch=2, mask=(6, 1)),
    AttentionCase("a row of padding alone", length=11, batch=3, mask=(0, 11, 4)),
    AttentionCase("a row of padding alone, decode", past=12, batch=2, mask=(13, 0)),
    AttentionCase("holes in the mask", past=5, length=12, batch=2, mask="holes"),
    AttentionCase("sliding below the window", past=0, length=20, sliding=5),
    AttentionCase("sliding above the window", past=0, length=24, sliding=11),
    AttentionCase("sliding, past within reach", past=3, length=4, sliding=5),
    AttentionCase("sliding, past out of reach", past=30, length=3, sliding=11),
    AttentionCase("sliding, one token", past=30, length=1, sliding=12, batch=2, mask=(0, 25)),
    AttentionCase("sliding of one", past=6, length=5, sliding=1),
    AttentionCase("sliding never reached", past=6, length=5, sliding=100),
    AttentionCase("sliding, keys all padding", past=9, length=2, sliding=4, batch=2, mask=(11, 8)),
]
_TIES = [
    AttentionCase("A = 0", past=4, length=20, A="zero"),
    AttentionCase("A = 0, batch, left padding", past=4, length=20, batch=3, mask=(0, 3, 24), A="zero"),
    AttentionCase("equal values", past=2, length=19, values="equal"),
    AttentionCase("equal values, one token", past=33, values="equal", heads=(4, 4)),
    AttentionCase("ties straddle the boundary", past=7, length=21, values="exact", batch=3, mask=(0, 1, 6)),
    AttentionCase("ties straddle, one token", past=37, values="exact", batch=2, heads=(8, 1), head_dim=4),
    AttentionCase("ties, dt_bias", past=3, length=30, values="exact", dt_bias=1.0),
    AttentionCase("ties, holes", past=3, length=30, values="exact", batch=2, mask="holes"),
    AttentionCase("ties, sliding", past=20, length=9, values="exact", sliding=15),
    AttentionCase("ties, window of one", length=15, values="exact", window=1),
]
_STATIC = [
    AttentionCase("static, empty", length=5, slots=20, position=(0,)),
    AttentionCase("static, one token", slots=20, position=(7,)),
    AttentionCase("static, one token beyond the window", slots=20, position=(15,)),
    AttentionCase("static, across the window", length=6, slots=20, position=(5,)),
    AttentionCase("static, rows at their own slots", length=4, slots=20, batch=3, position=(0, 6, 16)),
    AttentionCase("static, the last slot", length=3, slots=12, batch=2, position=(9, 9)),
    AttentionCase("static, fewer slots than the window", length=2, slots=6, position=(3,)),
    AttentionCase("static, window below what is filled", length=2, slots=30, position=(3,), window=4),
    AttentionCase("static, left padding", length=6, slots=20, batch=3, position=(5, 5, 5), mask=(0, 3, 8)),
    AttentionCase("static, padding alone", length=2, slots=20, batch=2, position=(9, 9), mask=(20, 11)),
    AttentionCase("static, sliding", length=3, slots=20, batch=2, position=(14, 2), sliding=5),
    AttentionCase("static, sliding above the window", length=3, slots=20, position=(16,), sliding=11),
    AttentionCase("static, heads 8/1, dt_bias", length=3, slots=20, position=(9,), heads=(8, 1), dt_bias=0.5),
    AttentionCase("static, heads 4/4", length=3, slots=20, position=(9,), heads=(4, 4)),
    AttentionCase("static, holes", length=3, slots=20, position=(14,), mask="holes"),
]
_STATIC_TIES = [
    AttentionCase("static, A = 0", length=9, slots=24, position=(12,), A="zero", values="exact"),
    AttentionCase(
        "static, A = 0, rows",
        slots=24,
        batch=3,
        position=(3, 9, 23),
        A="zero",
        values="exact",
        mask=(0, 2, 4),
    ),
    AttentionCase("static, equal values", length=15, slots=24, position=(0,), values="equal"),
    AttentionCase("static, ties in one call", length=22, slots=24, position=(0,), values="exact"),
    AttentionCase(
        "static, sliding, A = 0", length=5, slots=24, position=(19,), A="zero", values="exact", sliding=13
    ),
]
#: In float16 two programs agree to a bit of dt only, so those beyond the window are exact or tie at 1.
_HALF = [
    replace(case, name=f"float16: {case.name}", dtype=torch.float16)
    for case in (
        AttentionCase("within the window", past=2, length=6, batch=2, mask=(0, 3)),
        AttentionCase("static, within the window", length=3, slots=20, position=(4,)),
        AttentionCase("sliding", past=2, length=5, sliding=4, dt_bias=0.0),
        AttentionCase("a row of padding alone", length=6, batch=2, mask=(6, 0)),
        AttentionCase("A = 0", past=4, length=20, A="zero"),
        AttentionCase("static, A = 0", length=9, slots=24, position=(12,), A="zero", values="exact"),
    )
]
ATTENTION_CASES = [*_GROWING, *_TIES, *_STATIC, *_STATIC_TIES, *_HALF]


@dataclass(frozen=True)
class RoutingCase:
    """`logits`: "random", "integers" (ties are likely) or "equal" (nothing but ties)."""

    name: str
    num_keys: int = 5
    k: int = 3
    batch: int = 1
    length: int = 6
    per_token: bool = False
    norm: bool = False
    logits: str = "random"
    dtype: torch.dtype = torch.float32
    attributes: dict[str, int] = field(init=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        values = (self.num_keys, self.k, int(self.per_token), int(self.norm))
        names = ("num_keys", "num_experts_per_tok", "per_token", "norm_topk_prob")
        object.__setattr__(self, "attributes", dict(zip(names, values, strict=True)))

    def draw(self, seed: int = 0) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.length, 2 * self.num_keys)
        if self.logits == "equal":
            return torch.full(shape, 0.25, dtype=self.dtype)
        if self.logits == "integers":
            return torch.randint(-1, 2, shape, generator=rng).to(self.dtype)
        return torch.randn(shape, generator=rng).to(self.dtype)


ROUTING_CASES = [
    replace(case, name=f"{case.name}, {'per token' if per_token else 'reference'}", per_token=per_token)
    for per_token in (False, True)
    for case in (
        RoutingCase("plain"),
        RoutingCase("one token", length=1),
        RoutingCase("one token, batch of three", length=1, batch=3),
        RoutingCase("odd number of tokens", length=7, batch=3),
        RoutingCase("one expert", k=1),
        RoutingCase("k above num_keys", k=17),
        RoutingCase("every expert", k=25),
        RoutingCase("one key", num_keys=1, k=1),
        RoutingCase("normalised", k=7, norm=True),
        RoutingCase("many keys", num_keys=32, k=16, length=9),
        RoutingCase("ties", k=6, length=20, logits="integers"),
        RoutingCase("ties, k above num_keys", k=12, length=20, logits="integers", norm=True),
        RoutingCase("ties, many keys", num_keys=40, k=9, length=20, logits="integers"),
        RoutingCase("equal logits", num_keys=7, k=10, logits="equal"),
        RoutingCase("float16", k=4, logits="integers", dtype=torch.float16),
    )
]
