"""Generation -> its attention and its experts: one file each, all behind the same interface."""

from types import ModuleType

from doge_export.core.generations import CURRENT
from doge_export.model import (
    generation_1,
    generation_2,
    generation_3a,
    generation_3a_filled,
    generation_3a_joint,
    generation_3a_mixed,
    generation_3a_single,
    generation_3b,
    generation_3b_positional,
    generation_3b_single,
    generation_3b_single_positional,
    generation_3c,
    generation_4,
)

__all__ = ["MODULES"]

#: Each has `Attention(config)` and `CDMoE(config, per_token)`.
MODULES: dict[str, ModuleType] = {
    "1": generation_1,
    "2": generation_2,
    "3a-filled": generation_3a_filled,
    "3a": generation_3a,
    "3a-mixed": generation_3a_mixed,
    "3a-joint": generation_3a_joint,
    "3a-single": generation_3a_single,
    "3b-single": generation_3b_single,
    "3b-single-positional": generation_3b_single_positional,
    "3b-positional": generation_3b_positional,
    "3b": generation_3b,
    "3c": generation_3c,
    CURRENT: generation_4,
}
