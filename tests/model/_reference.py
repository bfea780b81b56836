"""transformers' DogeForCausalLM and our module with the same weights, and the same calls to both."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from doge_export.core.config import DogeConfig
from doge_export.model import DogeForExport
from tests.conftest import SMALL

__all__ = ["Calls", "Pair", "calls", "make_pair", "stable_topk_in_torch"]


@dataclass(frozen=True)
class Calls:
    """Token ids, mask and positions [batch, length], to be fed in calls of `steps` tokens."""

    steps: tuple[int, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def parts(self) -> Iterator[slice]:
        at = 0
        for count in self.steps:
            yield slice(at, at + count)
            at += count

    def rows(self, rows: slice) -> "Calls":
        return Calls(self.steps, self.ids[rows], self.mask[rows], self.positions[rows])


def calls(steps: Sequence[int], padding: Sequence[int] = (0,), vocab: int = 257, seed: int = 0) -> Calls:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (len(padding), sum(steps)), generator=rng)
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return Calls(tuple(steps), ids, mask, (mask.cumsum(1) - 1).clamp(min=0))


@contextlib.contextmanager
def stable_topk_in_torch() -> Iterator[None]:
    """The reference leaves the order among ties to torch.topk; here the lower position comes first."""
    function, method = torch.topk, torch.Tensor.topk

    def topk(values: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        assert largest
        order = torch.argsort(values, dim=dim, descending=True, stable=True).narrow(dim, 0, k)
        return torch.return_types.topk((values.gather(dim, order), order))

    torch.topk = torch.Tensor.topk = topk  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.topk, torch.Tensor.topk = function, method  # type: ignore[method-assign]


@dataclass
class Pair:
    """`reference` of transformers and `ours`, a DogeForExport."""

    reference: Any
    ours: DogeForExport

    def run_reference(self, calls: Calls) -> torch.Tensor:
        """logits [batch, length, vocab], from an empty cache and a fresh history of the rope."""
        from transformers.cache_utils import DynamicCache

        model = self.reference
        model.model.rotary_emb.__init__(model.config)
        cache, logits = DynamicCache(config=model.config), []
        with torch.inference_mode(), stable_topk_in_torch():
            for part in calls.parts():
                output = model(
                    calls.ids[:, part],
                    calls.mask[:, : part.stop],
                    calls.positions[:, part].contiguous(),
                    cache,  # by place: its name changed in transformers 5.24
                    use_cache=True,
                )
                logits.append(output.logits)
        return torch.cat(logits, 1)

    def run_ours(self, calls: Calls, slots: int = 0) -> torch.Tensor:
        """The same from our module; with `slots`, which must have a static cache then."""
        model, logits = self.ours, []
        batch = len(calls.ids)
        cache = model.empty_cache(batch, slots)
        with torch.inference_mode():
            for part in calls.parts():
                mask = calls.mask[:, : part.stop]
                position = None
                if slots:
                    mask = torch.nn.functional.pad(mask, (0, slots - part.stop))
                    position = torch.full((batch,), part.start)
                output, *cache = model(calls.ids[:, part], mask, calls.positions[:, part], cache, position)
                logits.append(output)
        return torch.cat(logits, 1)

    def with_cache(self, kv_cache: str, routing: str = "reference") -> "Pair":
        """The same weights behind another kind of cache or routing."""
        ours = DogeForExport(self.ours.config, routing, kv_cache).eval()
        ours.load_state_dict(self.ours.state_dict())
        return Pair(self.reference, ours)


def make_pair(
    seed: int = 0,
    routing: str = "reference",
    kv_cache: str = "growing",
    dtype: str = "float32",
    **changes: Any,
) -> Pair:
    """Random weights for SMALL with `changes`, A and biases included."""
    from transformers import DogeConfig as ReferenceConfig
    from transformers import DogeForCausalLM

    config = ReferenceConfig(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    reference = DogeForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(".A"):
                parameter.uniform_(-0.5, 0.5)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.15)
    reference.to(getattr(torch, dtype))
    ours = DogeForExport(DogeConfig.from_dict(config.to_dict()), routing, kv_cache).eval()
    ours.to(getattr(torch, dtype))
    state = reference.state_dict()
    if ours.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    ours.load_state_dict(state)
    return Pair(reference, ours)


def save(pair: Pair, folder: Path) -> Path:
    """The pair's weights as a checkpoint folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    pair.reference.save_pretrained(folder)
    return folder
