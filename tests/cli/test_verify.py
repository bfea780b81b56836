"""`doge-export verify`: hashes, a certificate, and the bundle once more from its checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from tests.conftest import write_checkpoint

Export = Callable[..., tuple[Path, Bundle]]
HELDOUT = presets.models_folder() / "heldout.txt"


def test_a_tampered_file_is_wrong_input(
    exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, bundle = exported()
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    assert run(["verify", str(copy)]) == 0
    assert capsys.readouterr().out == f"{len(bundle.manifest.files)} files are what the export wrote\n"
    weights = bytearray((copy / "model.onnx.data").read_bytes())
    weights[17] ^= 1
    (copy / "model.onnx.data").write_bytes(weights)
    assert run(["verify", str(copy)]) == 2
    assert "model.onnx.data was changed: its sha256 is not the manifest" in capsys.readouterr().err


@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize(
    "options",
    [{}, {"kv_cache": "static"}, {"precision": "int8", "types": {"v_proj": "int8:8"}}, {"target": "onnx"}],
    ids=["growing", "static", "rounded", "onnx"],
)
def test_a_second_export_gives_the_same_bytes(
    options: dict[str, Any], exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = exported(options)
    assert run(["verify", str(bundle.path), "--rebuild", "--reference", str(checkpoint), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == [] and found["rebuilt"] == {"differing": [], "versions": {}}
    # onnxruntime-genai loads a growing cache only
    assert ("genai_config.json" in bundle.manifest.files) == ("kv_cache" not in options)


def test_another_checkpoint_gives_others(
    exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, bundle = exported()
    other = write_checkpoint(tmp_path / "other", seed=9)
    assert run(["verify", str(bundle.path), "--rebuild", "--reference", str(other)]) == 1
    assert f"rebuilt from {other}: other bytes in decode.onnx, model.onnx, model.onnx.data\n" in (
        capsys.readouterr().out
    )
    assert run(["verify", str(bundle.path), "--rebuild"]) == 2
    assert "they belong together" in capsys.readouterr().err


def test_what_a_text_rounded_is_not_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-m", "doge-tiny", "-o", str(tmp_path / "full"), "--no-validate"]) == 0
    arguments = ["quantize", str(tmp_path / "full"), "-o", str(tmp_path / "int4"), "--scheme", "int4-gptq"]
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    assert run([*arguments, "--text", str(text)]) == 0
    assert run(["verify", str(tmp_path / "int4"), "--rebuild", "--reference", "doge-tiny"]) == 2
    assert "was rounded with a text (int4-gptq)" in capsys.readouterr().err


def test_a_certificate_is_of_one_bundle(
    exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = exported()
    _, other = exported(seed=5)
    report, missed = tmp_path / "report.json", tmp_path / "missed.json"
    arguments = ["validate", str(bundle.path), "--reference", str(checkpoint), "--json"]
    assert run([*arguments, str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["files"] == {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    assert found["versions"]["doge-export"] and found["machine"]
    assert run(["verify", str(bundle.path), "--certificate", str(report)]) == 0
    capsys.readouterr()
    assert run(["verify", str(other.path), "--certificate", str(report)]) == 1
    assert "is of another bundle: other bytes in decode.onnx, model.onnx, " in capsys.readouterr().out
    assert run([*arguments, str(missed), "--limit", "max_abs_diff=1e-12"]) == 1
    assert run(["verify", str(bundle.path), "--certificate", str(missed)]) == 1
    assert "says that the bundle missed" in capsys.readouterr().out
    report.write_text("[]")
    assert run(["verify", str(bundle.path), "--certificate", str(report)]) == 2
    assert "is no certificate" in capsys.readouterr().err
    assert run(["verify", str(bundle.path), "--certificate", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
