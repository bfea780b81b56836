"""`doctor`: what is said of this machine, of a bundle, and of each thing that may be wrong with them."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import Bundle
from doge_export.core.native_library import instruction_set, plugin_library
from doge_export.inspection import doctor
from doge_export.runtime import Session
from doge_export.serve.loading import about_model

Export = Callable[..., tuple[Path, Bundle]]


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> dict[str, dict[str, str]]:
    """Findings by name."""
    assert run(["doctor", *arguments, "--json", "-"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is (code == 0)
    return {one["name"]: one for one in found["findings"]}


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, code=0)
    assert "onnxruntime" in found["packages"]["detail"] and "numpy" in found["packages"]["detail"]
    assert "CPUExecutionProvider" in found["onnxruntime"]["detail"]
    names = ("amx", "avx512", "avx2", "i8mm", "dotprod", "neon", "generic")
    assert instruction_set(plugin_library()) in names
    assert instruction_set(plugin_library()) in found["native library"]["detail"]
    assert run(["doctor"]) == 0
    assert "ok  native library" in capsys.readouterr().out


def test_a_bundle(exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    _, bundle = exported()
    found = told(capsys, str(bundle.path), code=0)
    caches = "growing cache of model.onnx, bounded cache of decode.onnx"
    assert found["bundle"]["detail"] == f"ort-cpu, float32, fp32, {caches}" and bundle.caches == caches
    assert "1 x DecodeTokens, 2 x DecoderLayer" in found["native kernels"]["detail"]
    for greedy, said in ((True, "bounded cache of decode.onnx"), (False, "growing cache of model.onnx")):
        session = SimpleNamespace(candidates=4 if greedy else 0)
        assert about_model(bundle, cast(Session, session)) == f"fp32, {said}"
    assert found["plain onnxruntime"]["state"] == found["files"]["state"] == "ok"


def test_what_the_cpu_cannot_compute(exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    _, bundle = exported({"target": "onnx", "dtype": "bfloat16"})
    found = told(capsys, str(bundle.path), code=1)
    assert found["plain onnxruntime"]["state"] == "problem"
    assert "the CPU runs --target ort-cpu --dtype float32" in found["plain onnxruntime"]["remedy"]


def test_a_damaged_bundle(exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(exported()[1].path, tmp_path / "copy")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    found = told(capsys, str(copy), code=1)
    assert "was changed" in found["files"]["detail"]
    assert found["native kernels"]["state"] == "ok", "the rest is tried all the same"
    (copy / "model.onnx").write_bytes(b"junk")
    found = told(capsys, str(copy), code=1)
    assert "cannot load" in found["native kernels"]["detail"] and found["native kernels"]["remedy"]
    found = told(capsys, str(tmp_path / "nothing"), code=1)
    assert found["bundle"]["state"] == "problem" and "files" not in found


def test_a_missing_library(
    exported: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", tmp_path / "missing.so")
    found = told(capsys, str(exported()[1].path), code=1)
    assert "make setup" in found["native library"]["remedy"]
    assert "function bodies" in found["native kernels"]["detail"]
    assert found["plain onnxruntime"]["state"] == "ok"


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    junk = tmp_path / "junk.so"
    junk.write_bytes(b"no library")
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", junk)
    found = {one.name: one for one in doctor.examine()}
    assert found["native library"].state == "problem"


@pytest.mark.parametrize(
    ("versions", "name", "state", "sentence"),
    [
        ({"numpy": "1.26"}, "numpy", "problem", "1.26 is installed, and this version works with >=2.4"),
        ({"rich": None}, "rich", "problem", "is not installed"),
        ({"transformers": "4.57.1"}, "transformers", "problem", "works with <6,>=5.23"),
        (
            {"torch": None},
            "extra export",
            "note",
            "without torch there is no export, validate, pareto and tuned rounding",
        ),
        (
            {"onnxruntime-gpu": "1.32.0"},
            "onnxruntime",
            "problem",
            "onnxruntime-gpu 1.32.0 overwrite each other's files",
        ),
    ],
)
def test_packages(
    versions: dict[str, Any], name: str, state: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(of: str) -> str:
        found = versions.get(of, "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(of)
        return found or real(of)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = [one for one in doctor.examine() if one.name == name and one.state == state]
    assert found and sentence in found[0].detail and found[0].remedy
