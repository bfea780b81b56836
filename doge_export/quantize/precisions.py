"""What each `--precision` stores: which kind of weight in which type."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from doge_export.quantize.round_to_nearest import choose_block

__all__ = ["MATRICES", "PRECISIONS", "Precision", "stored_bytes", "stored_dtype"]


@dataclass(frozen=True)
class Precision:
    """The type of the matrices of the layers, experts included, of the embedding and of the head; None
    leaves them in the file's dtype. A tied table is stored once, as a head."""

    layers: str | None = None
    embedding: str | None = None
    head: str | None = None


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(),
    "int8": Precision("int8", "int8", "int8"),
    "int4": Precision("int4", "int4", "int4"),
    # The head is most of a small model's bytes, and rounding it touches one product only.
    "int8-head4": Precision("int8", "int8", "int4"),
    # Activations too, by ranges that a text gave: the weights are stored by passes/quantize_activations.py.
    "w8a8": Precision(),
}

#: What is large. Norms, biases, residuals, A, dt_proj and the router decide much and weigh little.
MATRICES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "down_embed", "up_embed"}
)


def stored_dtype(name: str, shape: tuple[int, ...], precision: str, tied: bool) -> str | None:
    """The type that the checkpoint's tensor `name` is stored in; None: the file's dtype.

    A matrix whose rows no block divides stays as it is.
    """
    scheme = PRECISIONS[precision]
    role, _, kind = name.rpartition(".")
    role = role.rpartition(".")[2]
    dtype = None
    if kind == "weight":
        if role == "embed_tokens":
            dtype = scheme.head if tied else scheme.embedding
        elif role == "lm_head":
            dtype = scheme.head
        elif role in MATRICES:
            dtype = scheme.layers
    return dtype if dtype is not None and choose_block(shape[-1], dtype) is not None else None


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], precision: str, tied: bool, width: int) -> int:
    """Bytes of a checkpoint's tensors, scales included; `width` bytes for a number of the file's dtype."""
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        dtype = stored_dtype(name, shape, precision, tied)
        if dtype is None:
            total += count * width
        else:
            block = choose_block(shape[-1], dtype)
            assert block is not None
            total += count * {"int8": 8, "int4": 4}[dtype] // 8 + count // block * 2
    return total
