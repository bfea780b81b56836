"""The keys of adapter_config.json, every one that PEFT 0.21 knows: what its value may be, and which values
make a merge another than is done here."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError

__all__ = ["CONFIG", "KEYS", "MERGE_WITH_PEFT", "check_keys", "is_real", "is_whole", "shown"]

CONFIG = "adapter_config.json"
MERGE_WITH_PEFT = "Merge it with PEFT's merge_and_unload, and export the result."

_LARGEST = 3.4e38  # of float32
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
#: Beginnings of A and B that leave the checkpoint as it is; "mica" fixes B, and "eva" moves ranks about,
#: which rank_pattern says.
_BEGINNINGS = ("gaussian", "orthogonal", "eva", "mica")
_LOOKUP = reprlib.Repr()
_LOOKUP.maxstring = _LOOKUP.maxother = _LOOKUP.maxlong = 60


@dataclass(frozen=True)
class _Key:
    """`holds`: is a value of the key's kind, which `kind` names; of those that are, `refused` are the ones
    that cannot be merged here, because of `why`."""

    holds: Callable[[Any], bool]
    kind: str = ""
    refused: Callable[[Any], bool] = lambda value: False
    why: str = ""
    remedy: str = MERGE_WITH_PEFT


def is_whole(value: Any) -> bool:
    """Whether it is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a number that float32 holds, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def shown(value: Any) -> str:
    """A value of the file as a sentence has it."""
    return _LOOKUP.repr(value)


def check_keys(folder: Path, settings: Mapping[str, Any]) -> None:
    """Hold every key of an adapter_config.json to its row.

    Raises:
        DogeExportError: a key that PEFT does not know has a value, a value is of another kind than its key's,
            or it asks for what cannot be merged here.
    """
    for key, value in settings.items():
        if key not in KEYS:
            if value is not None:
                raise DogeExportError(
                    f"{folder / CONFIG} has {shown(key)}: {shown(value)}, a key that PEFT 0.21 does not know "
                    "and that may change what is merged.",
                    "Remove the key if it means nothing; or merge the adapter with the PEFT that wrote it, "
                    "and export the result.",
                )
            continue
        row = KEYS[key]
        if not row.holds(value):
            raise DogeExportError(
                f"{folder / CONFIG} has {key} {shown(value)}, which must be {row.kind}.",
                "Give what PEFT's save_pretrained wrote.",
            )
        if row.refused(value):
            raise DogeExportError(
                f"{folder} is a LoRA adapter with {key} {shown(value)}, {row.why}.", row.remedy
            )


def _anything(value: Any) -> bool:
    return True


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or _texts(value)


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(item) for item in value)


def _tokens(value: Any) -> bool:
    return _wholes(value) and all(item >= 0 for item in value)


def _table(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(holds(item) for item in value.values())


def _rank(value: Any) -> bool:
    return is_whole(value) and value > 0


def _beginning(value: Any) -> bool:
    return value is None or isinstance(value, bool | str)


def _moves_weights(value: Any) -> bool:
    return isinstance(value, str) and value not in _BEGINNINGS and value.lower() != "gaussian"


def _refused_unless_empty(why: str, remedy: str = MERGE_WITH_PEFT) -> _Key:
    return _Key(_anything, refused=bool, why=why, remedy=remedy)


def _refused_unless_null(why: str, remedy: str = MERGE_WITH_PEFT) -> _Key:
    return _Key(_anything, refused=lambda value: value is not None, why=why, remedy=remedy)


_HARMLESS = _Key(_anything)
_FLAG = _Key(_flag, "true, false or null")
_BEGUN = _Key(_or_null(_object), "an object or null")

#: Key -> what is done with it. Harmless are those that PEFT reads neither when it loads nor when it merges,
#: or that only say how A and B were begun or trained.
KEYS: dict[str, _Key] = {
    # PeftConfig
    "peft_type": _HARMLESS,  # read first
    "task_type": _Key(_or_null(lambda value: value in _TASKS), f"one of {', '.join(_TASKS)}, or null"),
    "auto_mapping": _HARMLESS,
    "peft_version": _HARMLESS,
    "base_model_name_or_path": _HARMLESS,
    "revision": _HARMLESS,
    "inference_mode": _HARMLESS,
    # Honoured
    "r": _Key(_rank, "a whole number above 0"),
    "lora_alpha": _Key(is_real, "a number that float32 holds"),
    "use_rslora": _FLAG,
    "rank_pattern": _Key(_table(_rank), "an object of whole numbers above 0"),
    "alpha_pattern": _Key(_table(is_real), "an object of numbers that float32 holds"),
    "target_modules": _Key(_text_or_texts, "a regular expression or a list of names, as PEFT asks of a Doge"),
    "exclude_modules": _Key(_or_null(_text_or_texts), "a regular expression, a list of names or null"),
    "layers_to_transform": _Key(
        _or_null(lambda value: is_whole(value) or _wholes(value)), "a whole number, a list of them or null"
    ),
    "layers_pattern": _Key(_or_null(_text_or_texts), "a name, a list of names or null"),
    "modules_to_save": _Key(_or_null(_texts), "a list of names or null"),
    "trainable_token_indices": _Key(
        _or_null(lambda value: _tokens(value) or _table(_tokens)(value)),
        "a list of tokens, an object of such lists or null",
    ),
    "bias": _Key(lambda value: value in ("none", "all", "lora_only"), "'none', 'all' or 'lora_only'"),
    "lora_bias": _FLAG,
    "use_dora": _FLAG,
    "ensure_weight_tying": _FLAG,
    "init_lora_weights": _Key(
        _beginning,
        "true, false, null or a name",
        _moves_weights,
        "which changes the checkpoint's weights too, or is no beginning that PEFT 0.21 knows",
    ),
    # Harmless
    "lora_dropout": _Key(
        lambda value: isinstance(value, int | float) and not value > 1, "a number of at most 1"
    ),
    "megatron_core": _HARMLESS,
    "runtime_config": _HARMLESS,
    "loftq_config": _HARMLESS,
    "eva_config": _BEGUN,
    "corda_config": _BEGUN,
    "lora_ga_config": _BEGUN,
    "velora_config": _BEGUN,
    "use_qalora": _HARMLESS,
    "qalora_group_size": _HARMLESS,
    # Refused
    "fan_in_fan_out": _Key(
        _flag,
        "true, false or null",
        bool,
        "which is for layers that store their weights transposed, and Doge has none",
        "Set fan_in_fan_out to false in adapter_config.json: PEFT reads it so for these layers.",
    ),
    "megatron_config": _refused_unless_empty("which is for the parallel layers of Megatron"),
    "target_parameters": _refused_unless_empty("whose matrices belong to parameters and not to modules"),
    "layer_replication": _refused_unless_empty(
        "which makes a model of other layers",
        "Write the checkpoint with its layers repeated, and train an adapter of that: PEFT's own merge adds "
        "what all copies of a layer learned to one.",
    ),
    "alora_invocation_tokens": _refused_unless_empty(
        "which acts on the tokens behind an invocation alone",
        "Run it with PEFT, which cannot merge it either.",
    ),
    "arrow_config": _refused_unless_null(
        "which chooses among adapters by the input", "Run it with PEFT, which cannot merge it either."
    ),
    "monteclora_config": _refused_unless_null("whose matrices are drawn around the stored ones"),
    "kasa_config": _refused_unless_null("which changes the checkpoint's weights too"),
    "use_bdlora": _refused_unless_null("whose matrices are stored as blocks"),
}
