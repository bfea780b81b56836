"""The generations of Doge checkpoints: what sets each apart, and which one a folder holds. No torch here."""

from doge_export.core.generations.detect import (
    generations_of_keys,
    generations_of_tensors,
    refuse_unsupported,
    same_mathematics,
)
from doge_export.core.generations.doge2 import MODEL_TYPES, as_current, is_doge2
from doge_export.core.generations.names import canonical_names, grouped_names, is_computed, stored_name
from doge_export.core.generations.settings import check_earlier, check_whole, is_number
from doge_export.core.generations.table import CURRENT, GENERATIONS, Generation, find_generation

__all__ = [
    "CURRENT",
    "GENERATIONS",
    "MODEL_TYPES",
    "Generation",
    "as_current",
    "canonical_names",
    "check_earlier",
    "check_whole",
    "find_generation",
    "generations_of_keys",
    "generations_of_tensors",
    "grouped_names",
    "is_computed",
    "is_doge2",
    "is_number",
    "refuse_unsupported",
    "same_mathematics",
    "stored_name",
]
