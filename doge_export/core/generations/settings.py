"""Settings that only generations before transformers' have, checked."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.generations.table import GENERATIONS

__all__ = ["check_earlier", "check_whole", "is_number"]


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # a whole number may be larger than any; NaN is nothing


def check_whole(key: str, value: Any) -> None:
    """See whether it is a whole number of at least 1.

    Raises:
        DogeExportError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DogeExportError(f"config.json: {key} is {value!r}, not a whole number of at least 1.")
    if value >= 2**31:
        shown = value if value < 1 << 64 else f"2**{value.bit_length() - 1} or more"
        raise DogeExportError(f"config.json: {key} is {shown}, more than any model can have.")


def check_earlier(values: Mapping[str, Any], rope: Mapping[str, Any], generation: str) -> None:
    """Check the settings that only generations before transformers' have, and refuse what none of them had.
    `values` are fields of DogeConfig.

    Raises:
        DogeExportError: naming the first that is not supported.
    """
    if values["sliding_window"] is not None:
        raise DogeExportError(
            f"config.json: sliding_window {values['sliding_window']} is not supported in generation "
            f"{generation}.",
            "Set it to null if the checkpoint was trained without.",
        )
    ratio, size = values["dynamic_mask_ratio"], values["expert_retrieval_size"]
    if not is_number(ratio) or not 0 <= ratio <= 1:
        raise DogeExportError(f"config.json: dynamic_mask_ratio is {ratio!r}, not a number from 0 to 1.")
    if values["is_moe"] and GENERATIONS[generation].queries:
        check_whole("expert_heads", values["expert_heads"])
        check_whole("expert_retrieval_size", size)
        keys = math.isqrt(values["num_experts"])
        if size % 2:
            raise DogeExportError(f"config.json: expert_retrieval_size {size} is odd, and has two halves.")
        if values["num_experts_per_tok"] > keys and generation != "3b-single-positional":  # all are ranked
            raise DogeExportError(
                f"config.json: {values['num_experts_per_tok']} experts per head are more than the {keys} "
                f"keys of each half that {values['num_experts']} experts have."
            )
    if GENERATIONS[generation].inner:
        _check_inner(values, rope)


def _check_inner(values: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Check the settings that only generation 1 has."""
    for key in (
        "num_inner_values",
        "num_inner_value_heads",
        "num_value_per_head",
        "inner_values_retrieval_size",
    ):
        check_whole(key, values[key])
    if values["num_value_per_head"] > values["num_inner_values"]:
        raise DogeExportError(
            f"config.json: num_value_per_head {values['num_value_per_head']} is more than the "
            f"{values['num_inner_values']} inner values there are."
        )
    heads, head_dim = values["num_attention_heads"], values["head_dim"]
    if heads * head_dim != values["hidden_size"]:
        raise DogeExportError(
            f"config.json: {heads} heads of head_dim {head_dim} are not the hidden_size "
            f"{values['hidden_size']}, as in generation 1 they must be."
        )
    if rope["rope_type"] != "default":
        raise DogeExportError(
            f"config.json: rope_type {rope['rope_type']!r} is not supported in generation 1, whose own code "
            "fails on any scaling.",
            "Set rope_scaling to null if the checkpoint was trained without.",
        )
