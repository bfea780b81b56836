"""The plugins in TensorRT's own registry, and the PTX that it would embed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.triton.register import register_plugins
from doge_export.triton.table import PLUGINS
from tests.triton._bindings import name_bindings
from tests.triton._registry import trt

ROOT = Path(__file__).parents[2]


def test_every_plugin_has_a_creator(monkeypatch: pytest.MonkeyPatch) -> None:
    name_bindings(monkeypatch)
    assert register_plugins() == [f"doge::{name}" for name in PLUGINS]
    assert register_plugins() == [f"doge::{name}" for name in PLUGINS]  # a second time does nothing
    for name, plugin in PLUGINS.items():
        creator = trt.get_plugin_registry().get_creator(name, "1", "doge")
        assert creator is not None
        assert [field.name for field in creator.field_names] == list(plugin.attributes)


def test_without_tensorrt_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DogeExportError, match="cannot be registered") as caught:
        register_plugins()
    assert "pip install tensorrt" in str(caught.value.remedy)


def test_ptx_has_the_parameters_that_tensorrt_passes() -> None:
    """Pointers of the inputs, int32 scalars, pointers of the outputs, and nothing else; ptxas takes it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
    command = [sys.executable, "-m", "tests.triton._compile"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [row["name"] for row in found] == list(PLUGINS)
    for row in found:
        plugin = PLUGINS[row["name"]]
        pointers = ["u64"] * len(plugin.inputs), ["u64"] * len(plugin.outputs)
        assert row["parameters"] == [*pointers[0], *["u32"] * row["scalars"], *pointers[1]], row["name"]
        assert row["ptxas"] == "" and row["target"] == ["sm_80"]
        assert row["block"] in (32, 64, 128, 256) and row["shared"] < 100_000
