"""Whether a checkpoint's tensors are those of its config.json: names, shapes, what is too much, the tied
head. One judge for all commands, without torch, and quick for the most absurd configuration."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.core.tensor_shapes import (
    EMBEDDING,
    HEAD,
    Shapes,
    differences,
    shapes_beside,
    tensor_shapes,
)

__all__ = ["check_finite", "check_tensors"]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BOTH = "take config.json and weights from the same checkpoint"
#: From where on a number rounds to infinity.
_LIMITS = {"float16": 65520.0, "bfloat16": 2.0**127 * (2 - 2.0**-8), "float32": 2.0**127 * (2 - 2.0**-24)}

_HOLDS = {
    "float16": "Export in a type that holds it, bfloat16 or float32.",
    "bfloat16": "Export in a type that holds it, float32.",
    "float32": "Give a checkpoint without it: no type of an export holds it.",
}


def check_tensors(checkpoint: Checkpoint) -> None:
    """Hold the checkpoint's names and shapes to its config.json.

    Raises:
        DogeExportError: a tensor is missing, is superfluous, or has another shape; or a head that is not the
            embedding's table lies beside tied embeddings. The remedy says the likely cause.
    """
    config, folder, present = checkpoint.config, checkpoint.folder, checkpoint.shapes
    wanted = shapes_beside(config, present)
    spare = {HEAD} if config.tie_word_embeddings else set()
    if (difference := next(differences(wanted, present, spare), None)) is not None:
        name, there, would = difference
        if there is None:
            what = f"{folder} holds no tensor {name!r}."
        elif would is None:
            extra = _counted(present.keys() - wanted.keys() - spare)
            what = f"{folder} holds {extra} that config.json has no place for, first {name!r}."
        else:
            what = f"{name} is {list(there)} in {folder}, and config.json makes it {list(would)}."
        raise DogeExportError(what, _cause(checkpoint, wanted))
    if spare & present.keys():
        _check_tied(checkpoint)
    _check_causal(checkpoint)


def _check_causal(checkpoint: Checkpoint) -> None:
    """The code of 23 January to 1 February 2025 leaves the dynamic mask out where config.json says is_causal,
    and what came after does not read it. With an A of 0, which stays so in training, both are the same."""
    if checkpoint.config.generation != "3a" or checkpoint.config.raw.get("is_causal") is not True:
        return
    for name in checkpoint.shapes:
        if name.endswith(".self_attn.A") and checkpoint.array(name).any():
            raise DogeExportError(
                f"config.json says is_causal true, by which the code of January 2025 has no dynamic mask and "
                f"later code has one; {name} is not 0, so that they differ.",
                "Set is_causal to false in config.json if the model was trained with its dynamic mask; else "
                "set every A to 0.",
            )


def check_finite(
    checkpoint: Checkpoint, dtype: str, changed: Mapping[str, Callable[[str], Any]] | None = None
) -> None:
    """See whether every weight is a number in `dtype`. All of them are read: about a second a gigabyte.
    `changed`: tensors of other values, such as those with an adapter merged -> what makes them.

    Raises:
        DogeExportError: naming the first tensor that holds an infinity or NaN, or a number beyond `dtype`.
    """
    makers = changed or {}
    for name in dict.fromkeys((*checkpoint.shapes, *makers)):
        largest = _largest(makers[name](name) if name in makers else checkpoint.array(name))
        if math.isinf(largest):
            what, remedy = f"numbers that are not finite in {dtype}", "Give a checkpoint without them."
        elif largest >= _LIMITS[dtype]:
            what = f"{largest:g}, which is not finite in {dtype}"
            remedy = _HOLDS[dtype]
        else:
            continue
        where = f"{checkpoint.folder} with the adapter merged" if name in makers else checkpoint.folder
        raise DogeExportError(f"{name} of {where} holds {what}.", remedy)


def _largest(array: Any) -> float:
    """Return the largest magnitude; infinite where one is infinite or not a number. By the bits, whose order
    is that of the magnitudes, since numpy is slow in float16 and bfloat16."""
    import numpy as np

    if array.size == 0:
        return 0.0
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize]
    magnitude = bits((1 << (8 * array.itemsize - 1)) - 1)
    largest = (np.ascontiguousarray(array).view(bits) & magnitude).max()
    number = float(np.array([largest], bits).view(array.dtype)[0])
    return number if math.isfinite(number) else math.inf


def _check_tied(checkpoint: Checkpoint) -> None:
    """Check that a tied head that is stored a second time is the embedding."""
    import numpy as np

    head, table = (checkpoint.array(name).astype(np.float32, copy=False) for name in (HEAD, EMBEDDING))
    if not np.array_equal(head, table, equal_nan=True):
        raise DogeExportError(
            f"config.json ties the embeddings, and {checkpoint.folder} holds another {HEAD!r}, which "
            "transformers would use.",
            "Set tie_word_embeddings to false in config.json, or remove the tensor.",
        )


def _layers(names: Collection[str]) -> set[str]:
    """Return the numbers of the layers that have any tensor."""
    return {match[1] for name in names if (match := _LAYER.match(name))}


def _cause(checkpoint: Checkpoint, wanted: Shapes) -> str:
    """Return the likeliest reason why the tensors are not the `wanted` ones of config.json, and what to
    do."""
    present = checkpoint.shapes
    missing, extra = set(wanted) - set(present), set(present) - set(wanted)
    for pattern, why in _FOREIGN.items():
        if any(re.search(f"({pattern})$", name) for name in extra):
            return why
    if not set(wanted) & set(present):
        alien = "None of its tensors has a name of a Doge: give the folder of a Doge checkpoint."
        return _several(extra) or alien
    return _setting(checkpoint) or _lack(wanted, missing) or _several(extra) or _rest(missing, extra)


#: What the names of tensors end with that are of no model alone -> what they are, and what makes one of them.
_FOREIGN = {
    r"\.lora_\w+(\.\w+)*|\.modules_to_save\..*|\.original_module\..*": (
        "They are of a model with an adapter that is not merged: save it after PEFT's merge_and_unload, or "
        "give the model and the adapter, -m MODEL --adapter FOLDER."
    ),
    r"(^|\.)_?flat_param(_\d+)?": (
        "FSDP saved them in one piece: save the model with its state_dict_type FULL_STATE_DICT."
    ),
    r"(^|\.)(v_head|value_head|reward_head|score|classifier)\..*": (
        "They are a head for values or classes, beside the language model: save that alone, without them."
    ),
}


def _setting(checkpoint: Checkpoint) -> str | None:
    """The key of config.json, or the few keys, that alone explain the difference."""
    config, keys_there = checkpoint.config, GENERATIONS[checkpoint.config.generation].keys
    for keys, derive in _SETTINGS:
        values = derive(checkpoint.shapes, config)
        if values is None or values == tuple(getattr(config, key) for key in keys):
            continue
        named = {keys_there.get(key, (key,))[0]: value for key, value in zip(keys, values, strict=True)}
        try:
            changed = DogeConfig.from_dict({**config.raw, **named}, config.generation)
        except DogeExportError:
            continue
        if _explains(changed, checkpoint.shapes):
            are = " and ".join(f"{key} {_json(value)}" for key, value in named.items())
            says = " and ".join(_json(getattr(config, key)) for key in keys)
            return (
                f"The tensors are those of {are}, and config.json says {says}: set it so if the model was "
                f"trained with that, or {_BOTH}."
            )
    return None


def _explains(config: DogeConfig, present: Shapes) -> bool:
    """Whether the tensors are those of `config`; a tied head may be there or not."""
    if config.num_hidden_layers != len(_layers(present)):
        return False
    wanted = tensor_shapes(config)
    own = {name: shape for name, shape in present.items() if name != HEAD or HEAD in wanted}
    return wanted == own


def _lack(wanted: Shapes, missing: set[str]) -> str | None:
    """Whether whole layers are missing and nothing else."""
    gone = sorted(_layers(missing) - _layers(set(wanted) - missing), key=int)
    if not gone or not all(
        name.startswith(tuple(f"model.layers.{layer}." for layer in gone)) for name in missing
    ):
        return None
    which = f"layer {gone[0]}" if len(gone) == 1 else f"layers {', '.join(gone[:8])}"
    return f"It lacks {which}{', ...' * (len(gone) > 8)} altogether: download it again, with every shard."


def _several(extra: set[str]) -> str | None:
    """Whether there is more than one model, each with words of its own before its names."""
    first = {name.split(".")[0] for name in extra if re.search(r"\.(layers\.\d+|embed_tokens)\.", name)} - {
        "model"
    }
    if not first:
        return None
    words = ", ".join(repr(word) for word in sorted(first))
    return f"It holds more than one model (names begin with {words}): save the one alone."


def _rest(missing: set[str], extra: set[str]) -> str:
    if extra and not missing:
        keys = sorted({key for key, part in _PARTS.items() if any(re.search(part, name) for name in extra)})
        check = f"Check {' and '.join(keys)} in config.json, or leave" if keys else "Leave"
        return f"{check} out what is not of the model: transformers' save_pretrained writes that alone."
    if missing and not extra:
        other = any(re.search(r"_norm\.|dt_proj|\.A$|_residual$", name) for name in missing)
        hint = ", or of another generation, which --generation names" if other else ""
        return f"The checkpoint is incomplete{hint}: download it again."
    if extra:
        return f"Instead there is {min(extra)!r}, for which config.json has no place: {_BOTH}."
    return f"{_BOTH.capitalize()}."


#: Keys of config.json -> the tensors that are there or not by them.
_PARTS = {
    "attention_bias": r"self_attn\.\w+\.bias$",
    "mlp_bias": r"mlp\.\w+\.bias$",
    "is_moe": r"mlp\.(router_gate|keys|queries|(down|up)_embed|(mlp|moe)_scaling)\b",
    "tie_word_embeddings": r"^lm_head\.weight$",
}


def _counted(names: Collection[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_Derive = Callable[[Shapes, DogeConfig], tuple[Any, ...] | None]
_0 = "model.layers.0."


def _size(name: str, axis: int = 0) -> _Derive:
    """Derive the length of an axis of a tensor."""
    return lambda present, config: (present[name][axis],) if len(present.get(name, ())) > axis else None


def _has(*names: str) -> _Derive:
    """Whether each tensor is there."""
    return lambda present, config: tuple(name in present for name in names)


def _experts(present: Shapes, config: DogeConfig) -> tuple[bool, int] | None:
    """Return whether there are experts, and how many."""
    table = present.get(f"{_0}mlp.down_embed.weight")
    return (True, table[0]) if table else None


def _heads(present: Shapes, config: DogeConfig) -> tuple[int, int] | None:
    """Return the numbers of heads and kv heads: A has an entry for each of one or the other, and norms are as
    long as a head."""
    a, query, key = (
        present.get(f"{_0}self_attn.{name}", ()) for name in ("A", "q_proj.weight", "k_proj.weight")
    )
    if len(a) != 1 or len(query) != 2 or len(key) != 2 or not a[0]:
        return None
    by_heads = GENERATIONS[config.generation].per_head
    head_dim = (query if by_heads else key)[0] // a[0]
    return (query[0] // head_dim, key[0] // head_dim) if head_dim else None


def _part(derive: _Derive, at: int) -> _Derive:
    """Derive one of several values."""
    return lambda present, config: None if (values := derive(present, config)) is None else (values[at],)


#: Keys of config.json, by our names, and how the tensors show what they are. Those that change together are
#: one row.
_SETTINGS: tuple[tuple[tuple[str, ...], _Derive], ...] = (
    (("num_hidden_layers",), lambda present, config: (len(_layers(present)),)),
    (("vocab_size",), _size(EMBEDDING)),
    (("hidden_size",), _size(EMBEDDING, 1)),
    (("intermediate_size",), _size(f"{_0}mlp.up_proj.weight")),
    (("tie_word_embeddings",), lambda present, config: (HEAD not in present,)),
    (("is_moe",), _has(f"{_0}mlp.down_embed.weight")),
    (("num_experts",), _size(f"{_0}mlp.down_embed.weight")),
    (("is_moe", "num_experts"), _experts),
    (("attention_bias",), _has(f"{_0}self_attn.q_proj.bias")),
    (("mlp_bias",), _has(f"{_0}mlp.up_proj.bias")),
    (("attention_bias", "mlp_bias"), _has(f"{_0}self_attn.q_proj.bias", f"{_0}mlp.up_proj.bias")),
    (("num_key_value_heads",), _part(_heads, 1)),
    (("num_attention_heads",), _part(_heads, 0)),
    (("num_attention_heads", "num_key_value_heads"), _heads),
    (("head_dim",), _size(f"{_0}self_attn.q_norm.weight")),
    (("max_position_embeddings",), _size(f"{_0}self_attn.dynamic_mask", 1)),
)
