"""A bundle in float4, by the commands: onnxruntime has no kernel for it, and every session gets floats."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.cli.app import run
from doge_export.compress.quantize_bundle import checkpoint_weights
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import float4
from doge_export.validate import validate
from doge_export.validate.diagnosis.bundle_weights import stored_weights
from doge_export.weights import FORMATS, PRECISIONS, dequantize, quantize, stored_bytes

#: The command where only what the package itself depends on is installed.
PLAIN = """import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "onnxscript", "onnx_ir")))
from doge_export.cli.app import run
sys.exit(run(sys.argv[1:]))"""
HELDOUT = presets.models_folder() / "heldout.txt"


@pytest.mark.usefixtures("traced_anew")
def test_the_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, some = tmp_path / "made", tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:3_000], encoding="utf-8")
    export = ["export", "-m", "doge-tiny", "-o", str(output), "--target", "tensorrt", "--dtype", "float16"]
    assert run([*export, "--precision", "nvfp4", "--max-length", "256", "--no-validate"]) == 0
    generate = ["generate", str(output), "-p", "My fellow", "--max-new-tokens", "3"]
    assert subprocess.run([sys.executable, "-c", PLAIN, *generate], check=False).returncode == 0
    assert run(["eval", str(output), "--text", str(some), "--window", "256"]) == 0
    assert run(["verify", str(output), "--rebuild", "--reference", "doge-tiny"]) == 0
    assert run(["doctor", str(output)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(output), "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["parameters"]["by_role"]
    config = Bundle.open(output).config
    shapes = tensor_shapes(config)
    assert {row["dtype"] for row in rows if row["role"] in ("embedding", "mlp")} == {"float4e2m1"}
    weights = sum(row["bytes"] for row in rows if row["role"] not in ("constants", "unnamed"))
    assert weights == stored_bytes(shapes, PRECISIONS["nvfp4"], config.tie_word_embeddings, 2)
    arguments = ["deploy", "triton", str(output), "-o", str(tmp_path / "r"), "--backend", "onnxruntime"]
    assert run(arguments) == 2
    assert "must dequantize at load" in capsys.readouterr().err


def test_better_rounding(tmp_path: Path) -> None:
    """The reference gets the weights that the bundle stores, and validate holds it to them."""
    output, figure, some = tmp_path / "made", tmp_path / "figure.json", tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    options = ExportOptions.resolve(target="tensorrt", routing="per-token", max_length=256)
    full = export_model("doge-tiny", tmp_path / "full", options, validate=False).bundle
    arguments = ["quantize", str(full.path), "-o", str(output), "--scheme", "nvfp4-gptq"]
    assert run([*arguments, "--text", str(some), "--json", str(figure)]) == 0
    assert json.loads(figure.read_text())["kl_divergence"] < 2.5e-2, "to nearest it is 3.4e-2"
    report = validate(Bundle.open(output), presets.models_folder() / "doge-tiny", quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_what_is_read_wrong_is_found(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge rounds the checkpoint by itself, and reads the file by another way than the session does."""
    plain: dict[str, Any] = {"target": "tensorrt", "max_length": 40}
    checkpoint, made = exported({**plain, "precision": "nvfp4"}, is_moe=True)
    stored, whole = stored_weights(made), checkpoint_weights(exported(plain, is_moe=True)[1])
    assert len(stored) == 2 * 9 + 1
    for name, numbers in stored.items():
        np.testing.assert_array_equal(numbers, dequantize(quantize(whole[name], FORMATS["nvfp4"])))
    assert validate(made, checkpoint, quick=True).passed
    wrong = float4._NUMBERS.copy()
    wrong[[5, 13]] = 3.5, -3.5
    monkeypatch.setattr(float4, "_NUMBERS", wrong)
    assert not validate(made, checkpoint, quick=True).passed
