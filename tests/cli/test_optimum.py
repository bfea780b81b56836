"""`optimum-cli export doge`, and `doge` in optimum's TasksManager: with the real optimum."""

import importlib
import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import pytest
from transformers import AutoConfig

from doge_export.cli.export import command
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError

Export = Callable[..., tuple[Path, Any]]


def optimum(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """What `optimum-cli` exits with."""
    (script,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "optimum-cli")
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        script.load()()
    return int(caught.value.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_writes_what_our_own_command_writes(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a finding is exit 1, which optimum's own exporters only log."""
    from doge_export.validate import limits

    checkpoint, bundle = exported({"target": "onnx"})
    monkeypatch.setitem(limits._TOLERANCES, "float32", {"max_abs_diff": 1e-12})
    arguments = ("export", "doge", "-m", checkpoint, "-o", tmp_path / "out", "--target", "onnx")
    assert optimum(monkeypatch, *arguments, "--json", "-") == 1
    assert json.loads(capsys.readouterr().out)["validation"]["passed"] is False
    assert files(tmp_path / "out") == files(bundle.path)
    assert optimum(monkeypatch, *arguments, "--force", "--dry-run") == 0


def test_the_installed_command_finds_it(tmp_path: Path) -> None:
    """In a process of its own, as people call it; and its mistakes are ours."""
    script = Path(sys.executable).parent / "optimum-cli"
    arguments = ["export", "doge", "-m", "no-such-model", "-o", str(tmp_path / "out")]
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: There is no folder, fixture or preset 'no-such-model'. There are")
    assert not (tmp_path / "out").exists()


def test_the_options_are_those_of_our_own_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimum(monkeypatch, "export", "doge", "--help") == 0
    shown = capsys.readouterr().out
    own = [option for parameter in command.params for option in parameter.opts]
    assert len(own) > 15 and all(f"{option} " in shown or f"{option}\n" in shown for option in own)
    assert optimum(monkeypatch, "export", "doge", "-o", "out") == 2  # -m is missing
    assert optimum(monkeypatch, "export", "doge", "-m", "doge-tiny", "-o", "out", "--nonsense") == 2


@click.command()
@click.option("-n", "--number", type=int, required=True, help="100% of it.")
@click.option("--on", is_flag=True)
@click.option("--set", "settings", multiple=True)
@click.option("--text")
@click.option("--version", is_flag=True, expose_value=False)
def _sample(number: int, on: bool, settings: tuple[str, ...], text: str | None) -> None:
    """Every kind of option that click knows here."""


def test_every_kind_of_option_comes_back_as_it_was_given() -> None:
    from doge_export.cli.optimum import add_options, to_arguments

    parser = ArgumentParser()
    add_options(parser, _sample.params)
    assert "100% of it." in parser.format_help()
    given = ["--number=-3", "--on", "--set=a=1", "--set=b=--x", "--text=- a \n"]
    assert to_arguments(parser.parse_args(given), _sample.params) == given
    assert to_arguments(parser.parse_args(["-n", "4"]), _sample.params) == ["--number=4"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--version"])


def test_nothing_beside_the_namespace_file() -> None:
    """An __init__.py would hide what other packages have there."""
    register = importlib.import_module("optimum.commands.register.register_doge")
    assert register.__file__ is not None
    root = Path(register.__file__).parents[2]
    assert [path.name for path in root.rglob("*.py")] == ["register_doge.py"]


@pytest.mark.parametrize("task", ["text-generation", "text-generation-with-past"])
def test_tasks_manager_knows_the_graph(task: str, exported: Export) -> None:
    """Names, axes and dummy inputs are those of a real bundle, which runs on them."""
    importlib.import_module("optimum.commands.register.register_doge")
    from optimum.exporters.tasks import TasksManager

    known = TasksManager.get_supported_tasks_for_model_type("doge", "onnx", library_name="transformers")
    assert sorted(known) == ["text-generation", "text-generation-with-past"]
    checkpoint, bundle = exported({"target": "onnx"})
    config = AutoConfig.from_pretrained(checkpoint)
    construct = TasksManager.get_exporter_config_constructor(
        "onnx", model_type="doge", task=task, library_name="transformers"
    )
    described = construct(config)
    manifest = Bundle.open(bundle.path).manifest
    for specs, axes in ((manifest.inputs, described.inputs), (manifest.outputs, described.outputs)):
        shapes = {spec.name: list(spec.shape) for spec in specs}
        assert list(axes) == list(shapes)
        for name, named in axes.items():
            assert {at: size for at, size in enumerate(shapes[name]) if isinstance(size, str)} == named
    session = ort.InferenceSession(str(bundle.model_path))
    feeds = described.generate_dummy_inputs(framework="np", batch_size=3, sequence_length=5)
    outputs = session.run(None, feeds)
    assert outputs[0].shape == (3, 5, config.vocab_size) and np.isfinite(outputs[0]).all()
    assert outputs[1].shape == (3, 2, 10, 16)
    traced = construct(config, int_dtype="int32").generate_dummy_inputs(framework="pt", sequence_length=4)
    assert str(traced["input_ids"].dtype) == "torch.int32" and traced["attention_mask"].shape == (2, 8)


def test_without_optimum_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.tasks", None)
    monkeypatch.delitem(sys.modules, "doge_export.optimum_tasks", raising=False)
    with pytest.raises(
        DogeExportError, match=r"TasksManager cannot be had.*pip install 'doge-export\[export,opt"
    ):
        importlib.import_module("doge_export.optimum_tasks")
