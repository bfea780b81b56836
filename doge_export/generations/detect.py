"""Which generation a checkpoint is of, by its config.json and the shapes of its tensors. A wrong guess is a
model that runs and is another one: where the evidence leaves two, or contradicts itself, this asks."""

from collections.abc import Mapping
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.generations.table import CURRENT, GENERATIONS

__all__ = ["detect"]

_Shapes = Mapping[str, tuple[int, ...]]
_ASK = "Say which one it is with --generation."
_INNER = ("v_queries", "v_keys", "v_embed", "dynamic_mask")
_PER_HEAD = frozenset({"3a", "3b", "3c"})
_ALL = frozenset(GENERATIONS)


def detect(raw: Mapping[str, Any], shapes: _Shapes) -> str:
    """The generation of a checkpoint with this config.json and these tensors, by transformers' names.

    Where no layer's attention can be seen it is the current one, which the missing tensors refuse then.

    Raises:
        DogeExportError: several generations fit, or none, or it is a model that is of none.
    """
    by_tensors, seen, certain = _of_tensors(raw, shapes)
    if certain:
        return next(iter(by_tensors))
    by_config, said = _of_config(raw)
    both = by_tensors & by_config
    if len(both) == 1:
        return next(iter(both))
    if not both:
        raise DogeExportError(
            f"The tensors are those of generation {_any(by_tensors)} ({seen}), and config.json is of "
            f"generation {_any(by_config)} ({said}).",
            f"Take both from the same checkpoint. {_ASK}",
        )
    raise DogeExportError(f"The checkpoint may be of generation {_any(both)}: {seen}; {said}.", _ASK)


def _of_tensors(raw: Mapping[str, Any], shapes: _Shapes) -> tuple[frozenset[str], str, bool]:
    """What the shapes allow, why, and whether no key of config.json can change that: a checkpoint that was
    converted in its place keeps keys of what it was."""
    parts = {name.split("self_attn.")[-1].split("mlp.")[-1].removesuffix(".weight") for name in shapes}
    for name in _INNER:
        if name in parts and "v_proj" in parts:
            raise DogeExportError(
                f"There are a {name} and a v_proj: attention was so for two days from 8 December 2024 on, "
                "which is not supported.",
                "Export a checkpoint of November or of late December 2024.",
            )
        if name in parts:
            return frozenset({"1"}), f"there is a {name}", True
    if "queries_proj" in parts:
        raise DogeExportError(
            "The experts are found by queries_proj, as for three weeks from 22 February 2025 on, which is "
            "not supported.",
            "Export a checkpoint with queries or with router_gate.",
        )
    if "router_gate.bias" in parts:
        raise DogeExportError(
            "router_gate has a bias: the models of 17 March to 14 April 2025 took the places of the best "
            "scores for experts' numbers, which is not supported.",
            "Export a checkpoint that was trained after 14 April 2025.",
        )
    if "q_norm" in parts or "k_norm" in parts:
        return frozenset({CURRENT}), "there is a q_norm", True
    ends: dict[str, set[tuple[int, ...]]] = {"self_attn.A": set(), "self_attn.dt_proj.weight": set()}
    for name, shape in shapes.items():
        for end, found in ends.items():
            if name.endswith(end):
                found.add(shape)
    if not all(len(found) == 1 for found in ends.values()):
        return frozenset({CURRENT}), "A and dt_proj are not in every layer, or not of one shape", False
    ((a,), (dt,)) = ends.values()
    heads, kv_heads, hidden = _sizes(raw)
    if len(a) != 1 or len(dt) != 2 or a[0] != dt[0] or heads is None:
        return frozenset({CURRENT}), "the shapes of A and dt_proj do not fit together", False
    what = f"there is no q_norm, A has {a[0]} entries and dt_proj {dt[1]} inputs"
    if heads == kv_heads:
        # A current checkpoint whose q_norm was lost looks the same.
        alike = f"{what}, and with as many kv heads as heads the shapes are alike"
        return _PER_HEAD | {"2", CURRENT}, alike, False
    if a[0] != heads:
        return frozenset({CURRENT}), what, False
    return (frozenset({"2"}) if dt[1] == hidden else _PER_HEAD), what, False


def _of_config(raw: Mapping[str, Any]) -> tuple[frozenset[str], str]:
    """What the keys allow, and why."""
    if "window_size" in raw and "keep_window_size" not in raw:
        raise DogeExportError(
            "config.json has window_size: it is of flash-dmattn's example model, which adds A * softplus(dt) "
            "without the exponential and is no Doge checkpoint.",
            "Train and export a Doge of transformers.",
        )
    if any(key in raw for key in ("num_inner_values", "inner_values_retrieval_size")):
        return frozenset({"1"}), "config.json has inner values"
    if any(key.startswith("num_cdmmoe_") for key in raw):
        return frozenset({"2"}), "config.json has num_cdmmoe_* and no inner values"
    if "dynamic_mask_ratio" in raw:
        if "keep_window_size" in raw:
            return frozenset({"3b"}), "config.json has dynamic_mask_ratio and keep_window_size"
        return frozenset({"3a"}), "config.json has dynamic_mask_ratio and no keep_window_size"
    if "keep_window_size" in raw:
        return frozenset({"3c", CURRENT}), "config.json has keep_window_size and no dynamic_mask_ratio"
    return _ALL, "config.json has no key that tells"


def _sizes(raw: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """heads, kv_heads, hidden, where they are whole numbers."""
    heads = raw.get("num_attention_heads", 8)
    kv_heads = raw.get("num_key_value_heads") or heads
    hidden = raw.get("hidden_size", 1024)
    if not all(type(size) is int for size in (heads, kv_heads, hidden)):
        return None, None, None
    return heads, kv_heads, hidden


def _any(names: frozenset[str]) -> str:
    return " or ".join(name for name in GENERATIONS if name in names)
