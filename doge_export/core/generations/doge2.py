"""`model_type: doge2`: generation 4 under the name that it has in the authors' own code, and their class's
settings.

Source: SmallDoges/small-doge, src/small_doge/models/doge2, as it is since 10 June 2025 (4d8fa2a).
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["MODEL_TYPES", "as_current", "is_doge2"]

#: `model_type` of config.json that can be exported.
MODEL_TYPES = ("doge", "doge2")

#: What Doge2Config takes where config.json is silent, and transformers' DogeConfig does not.
_DEFAULTS = {
    "intermediate_size": 4096,
    "num_experts": 4096,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
#: What its model never has, whatever config.json says.
_NEVER = {"mlp_bias": False, "sliding_window": None}
#: What its model does not read, and what names its code.
_UNREAD = ("dynamic_mask_ratio", "auto_map")


def is_doge2(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the authors' Doge2."""
    return raw.get("model_type") == "doge2"


def as_current(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json as transformers' Doge has it: of a Doge2 one that says the same, else itself."""
    if not is_doge2(raw):
        return dict(raw)
    kept = {key: value for key, value in raw.items() if key not in _UNREAD}
    named = {"model_type": "doge", "architectures": ["DogeForCausalLM"]}
    return {**_DEFAULTS, **kept, **_NEVER, **named}
