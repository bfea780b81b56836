"""What every peer shares: the shape it is told, and the requests it answers."""

__all__ = ["Shape", "Tokens", "serve"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from doge_export.bench import serve as protocol

Tokens = Iterator[int]


@dataclass(frozen=True)
class Shape:
    """A model's shape, enough to build a Llama of the same one."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    rope_theta: float
    tied: bool


def serve(open: Callable[..., dict[str, Any]], tokens: Callable[[list[int], int], Tokens]) -> None:
    """Answer the requests of `doge_export.bench.worker`, with `tokens` as the greedy loop."""

    def round(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        return protocol.timed(prompt, tokens(prompt, new_tokens))

    protocol.serve({"open": open, "round": round, "memory": protocol.peak_memory})
