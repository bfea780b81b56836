"""The trained checkpoints are language models in the generation that they were trained in."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from doge_export.core.generations import GENERATIONS
from tests.generations._checkpoints import TRAINED, trained

_SCRIPT = Path(__file__).parents[2] / "scripts" / "train_generations.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_generations", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_a_language_model_in_its_own_mathematics(name: str, script: ModuleType, tmp_path: Path) -> None:
    """Equal chances for all bytes cost 8 bits each, and their frequencies 4.2."""
    generation = name.removesuffix("-experts").removesuffix("-dense")
    assert generation in GENERATIONS
    own = script.bits_per_byte(trained(name, tmp_path), generation, "per-token")
    assert own < 3.5
