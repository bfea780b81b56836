"""Which generations a checkpoint may be of, by the shapes of its tensors and by the keys of its
config.json, each with what was seen. Names of tensors tell nothing: a checkpoint whose tensors were renamed
is what it was."""

from collections.abc import Callable, Mapping
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.generations.doge2 import is_doge2
from doge_export.core.generations.table import CURRENT, GENERATIONS

__all__ = ["generations_of_keys", "generations_of_tensors", "refuse_unsupported", "same_mathematics"]

_Shapes = Mapping[str, tuple[int, ...]]
_Config = Mapping[str, Any]
_INNER = ("v_queries", "v_keys", "v_embed", "dynamic_mask")
_ALL = frozenset(GENERATIONS)
#: Without norms of queries and keys: those that lack an A for each kv head.
_PER_HEAD = frozenset(name for name, row in GENERATIONS.items() if row.per_head and not row.inner)
_REPEATED = frozenset(name for name in _PER_HEAD if GENERATIONS[name].repeated)
_BY_VALUES = _PER_HEAD - _REPEATED


def same_mathematics(name: str, experts: int, ratio: float) -> tuple[str, str] | None:
    """The generation that computes what `name` does in a model with so many retrievals of `experts`, 0 where
    it has none, and with this dynamic_mask_ratio, and where it does not even then; None where none does."""
    if not experts and GENERATIONS[name].dense:
        return GENERATIONS[name].dense, ""
    if name == "3a-joint" and experts == 1:
        return "3a-single", ""
    if name == "3a-filled" and ratio == 0:
        return "3a", "for left-padded rows in steps, where its own code masks every key"
    return None


def refuse_unsupported(raw: _Config, shapes: _Shapes) -> None:
    """Refuse by its name what was a Doge for some days only, or never was one.

    Raises:
        DogeExportError: saying what it is, and what can be exported.
    """
    parts = _parts(shapes)
    for name in _INNER:
        if name in parts and "v_proj" in parts:
            raise DogeExportError(
                f"There are a {name} and a v_proj: attention was so for two days from 8 December 2024 on, "
                "which is not supported.",
                "Export a checkpoint of November or of late December 2024.",
            )
    heads, kv_heads, _ = _sizes(raw)
    a = _one_shape(shapes, "self_attn.A")
    keys, queries = (_one_shape(shapes, f"self_attn.{name}.weight") for name in ("k_proj", "q_proj"))
    grouped = heads and kv_heads and keys and queries and keys[0] * heads == queries[0] * kv_heads
    if "q_norm" in parts and a is not None and heads != kv_heads and a == (heads,) and grouped:
        raise DogeExportError(
            "There is a q_norm, and A has an entry for each query head: Doge2 was so from 29 April to 8 June "
            "2025, which is not supported.",
            "Export a checkpoint of 8 June 2025 or later.",
        )
    if not _INNER_KEYS & raw.keys() and "window_size" in raw and "keep_window_size" not in raw:
        raise DogeExportError(
            "config.json has window_size: it is of flash-dmattn's example model, which adds A * softplus(dt) "
            "without the exponential and is no Doge checkpoint.",
            "Train and export a Doge of transformers.",
        )


def generations_of_tensors(raw: _Config, shapes: _Shapes) -> tuple[frozenset[str], str]:
    """The generations whose attention has these tensors, and what was seen of them, as half a sentence.

    Where no layer's attention can be seen it is the current one, which the missing tensors refuse then.
    """
    parts = _parts(shapes)
    for name in _INNER:
        if name in parts:
            return frozenset({"1"}), f"there is a {name}"
    if "q_norm" in parts or "k_norm" in parts:
        return frozenset({CURRENT}), "there is a q_norm"
    a, dt = _one_shape(shapes, "self_attn.A"), _one_shape(shapes, "self_attn.dt_proj.weight")
    if a is None or dt is None:
        return frozenset({CURRENT}), "A and dt_proj are not in every layer, or not of one shape"
    heads, kv_heads, hidden = _sizes(raw)
    if len(a) != 1 or len(dt) != 2 or a[0] != dt[0] or heads is None:
        return frozenset({CURRENT}), "the shapes of A and dt_proj do not fit together"
    seen = f"there is no q_norm, A has {a[0]} entries and dt_proj {dt[1]} inputs"
    if heads == kv_heads:
        # A current checkpoint whose q_norm was lost looks the same, and the missing norm refuses it.
        return _PER_HEAD | {CURRENT}, f"{seen}, and with as many kv heads as heads the shapes are alike"
    if a[0] != heads:
        return frozenset({CURRENT}), seen
    return (_REPEATED if dt[1] == hidden else _BY_VALUES), seen


_INNER_KEYS = {"num_inner_values", "inner_values_retrieval_size"}


def _any_of(*keys: str) -> Callable[[_Config], bool]:
    return lambda raw: any(key in raw for key in keys)


def _expert_keys(raw: _Config, *prefixes: str) -> tuple[bool, ...]:
    """Whether there are keys of experts by each of the names that they had."""
    return tuple(any(key.startswith(f"num_{prefix}_") for key in raw) for prefix in prefixes)


#: Those whose classes write dynamic_mask_ratio and no keep_window_size, but for the first; and both.
_OF_FEBRUARY = frozenset({"3a", "3a-mixed", "3a-joint", "3a-single"})
_OF_MARCH = frozenset({"3b-single", "3b-single-positional", "3b-positional", "3b"})
#: What the keys of config.json speak for: the first row that holds counts. A class writes all of its own
#: keys, so that a key that is there was known to some class that wrote the file, and the newest of them was
#: the last.
_KEYS: tuple[tuple[Callable[[_Config], bool], frozenset[str], str], ...] = (
    (is_doge2, frozenset({CURRENT}), "config.json says model_type 'doge2'"),
    (_any_of(*_INNER_KEYS), frozenset({"1"}), "config.json has inner values"),
    (
        _any_of("mlp_bias", "sliding_window"),
        frozenset({"3c", CURRENT}),
        "config.json has mlp_bias or sliding_window, which only classes since June 2025 write",
    ),
    (
        lambda raw: "dynamic_mask_ratio" in raw and "keep_window_size" in raw,
        _OF_MARCH,
        "config.json has dynamic_mask_ratio and keep_window_size",
    ),
    (
        lambda raw: "dynamic_mask_ratio" in raw and "is_causal" in raw,
        _OF_FEBRUARY,
        "config.json has dynamic_mask_ratio and is_causal, as from 23 January to 1 February 2025",
    ),
    (
        lambda raw: "dynamic_mask_ratio" in raw and _expert_keys(raw, "cdmmoe", "cdmoe") == (True, False),
        frozenset({"3a-filled"}),
        "config.json has dynamic_mask_ratio and num_cdmmoe_*, as from 12 to 20 January 2025",
    ),
    (
        lambda raw: (
            "dynamic_mask_ratio" in raw
            and _expert_keys(raw, "cdmmoe") == (False,)
            and "num_channels" not in raw
        ),
        _OF_FEBRUARY,
        "config.json has dynamic_mask_ratio and no num_channels, which classes until 1 February 2025 write",
    ),
    (
        _any_of("dynamic_mask_ratio"),
        _OF_FEBRUARY | {"3a-filled"},
        "config.json has dynamic_mask_ratio and no keep_window_size",
    ),
    (
        lambda raw: _expert_keys(raw, "cdmmoe") == (True,),
        frozenset({"2"}),
        "config.json has num_cdmmoe_* and no inner values",
    ),
    (
        _any_of("keep_window_size"),
        frozenset({"3c", CURRENT}),
        "config.json has keep_window_size and no dynamic_mask_ratio",
    ),
)


def generations_of_keys(raw: _Config) -> tuple[frozenset[str], str]:
    """The generations that the keys of a config.json speak for, and why, as half a sentence. Without experts
    it speaks for none that differs in experts alone."""
    generations, why = _ALL, "config.json has no key that tells"
    for holds, names, said in _KEYS:
        if holds(raw):
            generations, why = names, said
            break
    if raw.get("is_moe") is not True:
        generations -= {name for name, row in GENERATIONS.items() if row.dense}
    return generations, why


def _parts(shapes: _Shapes) -> set[str]:
    """Return the names of the tensors of attentions and experts."""
    return {name.split("self_attn.")[-1].split("mlp.")[-1].removesuffix(".weight") for name in shapes}


def _one_shape(shapes: _Shapes, end: str) -> tuple[int, ...] | None:
    """The shape of all tensors whose name ends so; None where there are none or several shapes."""
    distinct = {shape for name, shape in shapes.items() if name.endswith(end)}
    return distinct.pop() if len(distinct) == 1 else None


def _sizes(raw: _Config) -> tuple[int | None, int | None, int | None]:
    """heads, kv_heads, hidden, where they are whole numbers."""
    heads = raw.get("num_attention_heads", 8)
    kv_heads = raw.get("num_key_value_heads") or heads
    hidden = raw.get("hidden_size", 1024)
    if not all(type(size) is int for size in (heads, kv_heads, hidden)):
        return None, None, None
    return heads, kv_heads, hidden
