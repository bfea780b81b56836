"""The rope's part of a config.json: `rope_parameters` as transformers 5 standardises it, checked."""

from collections.abc import Mapping
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.generations import is_number

__all__ = ["ROPE_TYPES", "read_rope"]

#: rope type -> the keys it cannot do without.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}


def read_rope(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the rope's settings in `raw`, a config.json by our names, in the old spelling too: `rope_type`,
    `rope_theta` and the keys of the type. `values` are fields of DogeConfig.

    Raises:
        DogeExportError: a type is not supported, a key is missing or is no number that it may be.
    """
    rope = _rope_settings(raw)
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise DogeExportError(
            f"config.json: rope_type {kind!r} is not supported.", f"Supported: {', '.join(ROPE_TYPES)}."
        )
    if kind in ("yarn", "llama3", "longrope"):
        outside = raw.get("original_max_position_embeddings")
        if outside is not None:
            rope["original_max_position_embeddings"] = outside
        rope.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    missing = [key for key in ROPE_TYPES[kind] if key not in rope]
    if missing:
        raise DogeExportError(f"config.json: rope_type {kind!r} needs {', '.join(missing)}.")
    for key, value in rope.items():
        _check_value(key, value, kind, values["head_dim"] // 2)
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise DogeExportError(
            f"config.json: partial_rotary_factor {partial!r} is not supported: "
            "the reference itself fails on a Doge model with it."
        )
    if kind == "dynamic" and values["head_dim"] <= 2:
        raise DogeExportError("config.json: dynamic rope divides by head_dim - 2, so head_dim must exceed 2.")
    return rope


def _rope_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are there and not null, by the new names."""
    settings = raw.get("rope_scaling") or raw.get("rope_parameters")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise DogeExportError(f"config.json: rope_parameters is {settings!r}, not an object.")
    if "rope_theta" in settings and settings["rope_theta"] is None:
        raise DogeExportError(
            "config.json: rope_theta is null within rope_parameters, where transformers takes a number only.",
            "Write a number, or leave it out.",
        )
    rope = {key: value for key, value in settings.items() if value is not None}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
    return rope


def _check_value(key: str, value: Any, kind: str, half: int) -> None:
    """See that it is a number, above 0 where it must be, or the list of `half` a head's numbers."""
    if key in ("short_factor", "long_factor"):
        numbers = isinstance(value, list) and len(value) == half and all(map(is_number, value))
        if not numbers or not all(item > 0 for item in value):
            raise DogeExportError(f"config.json: {key} must be a list of {half} numbers above 0.")
    elif key not in ("rope_type", "type", "truncate") and (
        not is_number(value) or (value <= 0 and key in ("rope_theta", *ROPE_TYPES[kind]))
    ):
        raise DogeExportError(f"config.json: rope parameter {key} is {value!r}, not a number above 0.")
