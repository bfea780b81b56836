"""Scales of input channels, moved from a matrix into what comes before it: the model computes the same.

W x = (W S) (S^-1 x) with S diagonal. S^-1 goes where x comes from, for the matrices' sake that are rounded
better as W S: the input norms' weights for q, k and v, and for gate and up, each with all else that reads the
same states (router and experts, whose columns are multiplied too); the rows of up for down, since
down(act(gate) * up) is linear in up.

Nothing else is folded. o_proj's input is a mixture of values, so S^-1 would go into v_proj, and from the
values the weights of the keys are computed: other keys would be kept. The last norm may take the scales of a
head of its own; that of a tied table may not: its columns are the embedding's as well, and the residual
stream of an embedding with scaled columns is another model's (the norms divide by the length of all
channels together).
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from doge_export.weights.arrays import Array, Matrix

__all__ = ["Fold", "apply_fold", "folds"]


@dataclass(frozen=True)
class Fold:
    """One input: `readers` [n, k] are multiplied with it, `giver` makes it: a norm's weight [k], or a matrix
    whose k rows do."""

    readers: tuple[str, ...]
    giver: str


def folds(weights: Collection[str]) -> list[Fold]:
    """The folds of a checkpoint, whose tensors' names are `weights`; readers stand with matrices of a known
    input first."""
    pairs = []
    layer = 0
    while (prefix := f"model.layers.{layer}.") + "input_layernorm.weight" in weights:
        attention = tuple(f"{prefix}self_attn.{role}_proj.weight" for role in "qkv")
        pairs.append(Fold(attention, f"{prefix}input_layernorm.weight"))
        mlp = tuple(
            name
            for role in ("gate_proj", "up_proj", "router_gate", "down_embed")
            if (name := f"{prefix}mlp.{role}.weight") in weights
        )
        pairs.append(Fold(mlp, f"{prefix}post_attention_layernorm.weight"))
        pairs.append(Fold((f"{prefix}mlp.down_proj.weight",), f"{prefix}mlp.up_proj.weight"))
        layer += 1
    if "lm_head.weight" in weights:
        pairs.append(Fold(("lm_head.weight",), "model.norm.weight"))
    return pairs


def apply_fold(weights: dict[str, Array], fold: Fold, scales: Matrix) -> None:
    """Multiply the readers' columns by `scales` [k], all above 0, and divide what gives their input."""
    for name in fold.readers:
        weights[name] = _as(weights[name], weights[name].astype(np.float32) * scales)
    for name in (fold.giver, f"{fold.giver.removesuffix('.weight')}.bias"):
        if name in weights:
            values = weights[name].astype(np.float32)
            by = scales[:, None] if values.ndim == 2 else scales
            weights[name] = _as(weights[name], values / by)


def _as(old: Array, new: Matrix) -> Array:
    return np.ascontiguousarray(new.astype(old.dtype))
