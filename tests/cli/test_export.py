"""`export` and `validate` as people call them: exit codes, one sentence, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import Bundle
from doge_export.inspection.contents import inspect_bundle

Export = Callable[..., tuple[Path, Any]]


@pytest.fixture
def checkpoint(exported: Export) -> Path:
    return exported()[0]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_export_validates_and_writes_a_whole_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert run(["export", "-m", str(checkpoint), "-o", str(output)]) == 0
    printed = capsys.readouterr()
    assert "exact" in printed.out
    assert "float32, growing cache of model.onnx, bounded cache of decode.onnx" in printed.out
    assert printed.err == ""
    assert set(files(output)) == {
        "model.onnx",
        "model.onnx.data",
        "canonical.onnx",
        "decode.onnx",
        "config.json",
        "generation_config.json",
        "genai_config.json",
        "doge_export.json",
        "recipe.toml",
    }
    manifest = json.loads((output / "doge_export.json").read_text())
    assert manifest["special_tokens"] == {"bos_token_id": [0], "eos_token_id": [1], "pad_token_id": [2]}
    assert "special_tokens.eos_token_id" in manifest["call"] and manifest["min_onnxruntime"] == "1.23"
    names = [entry["name"] for entry in manifest["graph"]["inputs"]]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:] == [f"past_key_values.{n}.{part}" for n in range(2) for part in ("key", "value")]
    assert (
        run(["validate", str(output), "--reference", str(checkpoint), "--json", str(tmp_path / "r.json")])
        == 0
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] and report["checks"] and report["max_abs_diff"] <= 1e-4
    assert {"kl_divergence", "top1_agreement", "ties"} <= set(report)


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        arguments = ["export", "-m", str(checkpoint), "-o", str(tmp_path / name), "--no-validate"]
        code = f"import sys; from doge_export.cli.app import run; sys.exit(run({arguments!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert str(tmp_path).encode() not in (tmp_path / "one" / "model.onnx").read_bytes()


def test_a_missed_tolerance_is_exit_1(exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = exported()
    code = run(["validate", str(bundle.path), "--reference", str(checkpoint), "--tolerance", "1e-12"])
    assert code == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["--dry-run"], ["--no-validate"]], ids=str)
def test_what_a_generation_config_does_not_get_is_said_once(
    more: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """export plans first and then does it; both read the file."""
    source = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    written = {"num_beams": 4, "eos_token_id": [1, -1], "top_k": -1, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(written))
    assert run(["export", "-m", str(source), "-o", str(tmp_path / "bundle"), *more]) == 0
    said = capsys.readouterr().err
    for sentence in ("asks for num_beams", "eos_token_id -1 is no token", "top_k is -1"):
        assert said.count(sentence) == 1


@pytest.mark.parametrize("more", [["--dry-run"], ["--no-validate"]], ids=str)
def test_a_generation_config_that_transformers_does_not_load_is_refused(
    more: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (source / "generation_config.json").write_text('{"pad_token_id": [2]}')
    assert run(["export", "-m", str(source), "-o", str(tmp_path / "bundle"), *more]) == 2
    assert "pad_token_id is [2], and transformers wants one token id" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_the_settings_of_a_config_that_lies_alone_are_the_bundles(checkpoint: Path, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (source / "generation_config.json").unlink()
    raw = json.loads((source / "config.json").read_text())
    asked = {"do_sample": True, "temperature": 0.5, "eos_token_id": [1, -1], "pad_token_id": -1}
    (source / "config.json").write_text(json.dumps(raw | asked))
    assert run(["export", "-m", str(source), "-o", str(tmp_path / "bundle"), "--no-validate"]) == 0
    written = json.loads((tmp_path / "bundle/generation_config.json").read_text())
    assert {key: written.get(key) for key in asked} == asked | {"eos_token_id": [1], "pad_token_id": None}


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bundle"
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--dry-run", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] is True
    assert plan["options"]["kv_cache"] == "growing"
    assert list(tmp_path.iterdir()) == []
    assert run(["export", "-m", "Doge-20M", "-o", str(output), "--dry-run"]) == 0
    assert "52.5 MB" in capsys.readouterr().out


def test_recipe_is_read_overruled_and_written(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('kv_cache = "static"\nmax_length = 30\ndtype = "float16"\n')
    base = ["export", "-m", str(checkpoint), "-o", str(tmp_path / "bundle"), "--no-validate"]
    assert run([*base, "--recipe", str(recipe), "--dtype", "float32"]) == 0
    written = tmp_path / "bundle" / "recipe.toml"
    assert tomllib.loads(written.read_text()) == {
        "target": "ort-cpu",
        "dtype": "float32",
        "precision": "fp32",
        "rounding": "nearest",
        "kv_cache": "static",
        "routing": "reference",
        "max_length": 30,
    }
    again = ["export", "-m", str(checkpoint), "-o", str(tmp_path / "again"), "--no-validate"]
    assert run([*again, "--recipe", str(written)]) == 0
    assert files(tmp_path / "again") == files(tmp_path / "bundle")


@pytest.mark.parametrize("precision", ["int8", "int4", "int8-head4"])
def test_a_precision_is_validated_recorded_and_repeated(
    precision: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, summary = tmp_path / "bundle", tmp_path / "summary.json"
    arguments = ["export", "-m", str(checkpoint), "-o", str(output), "--json", str(summary)]
    assert run([*arguments, "--precision", precision]) == 0
    printed = capsys.readouterr().out
    assert f"{precision} weights" in printed and f"rounding to {precision} cost: KL" in printed
    assert "exact for the rounded weights it holds" in printed
    manifest = json.loads((output / "doge_export.json").read_text())
    assert manifest["options"]["precision"] == precision
    assert manifest["decode"]["file"] == "decode.onnx" and manifest["decode"]["count"] == 64
    assert [spec["name"] for spec in manifest["decode"]["outputs"]][:2] == ["token_ids", "token_logits"]
    written = json.loads(summary.read_text())
    assert 0 <= written["validation"]["rounding"]["kl_divergence"] < 1
    assert written["validation"]["max_abs_diff"] <= 1e-4
    found = inspect_bundle(Bundle.open(output), load=False).as_dict()["parameters"]
    assert (found["bytes"], found["total"]) == (written["bytes"], written["parameters"])
    again = ["export", "-m", str(checkpoint), "-o", str(tmp_path / "again"), "--no-validate"]
    assert run([*again, "--recipe", str(output / "recipe.toml")]) == 0
    assert files(tmp_path / "again") == files(output)


def spoil_nothing(folder: Path) -> None:
    pass


def cut_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)


def change_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 52}))


def change_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "flags", "sentence"),
    [
        (cut_weights, [], "truncated"),
        (change_shape, [], "config.json makes it"),
        (change_type, [], "model_type 'llama'"),
        (only_pickle, [], "never loaded"),
        (spoil_nothing, ["--dtype", "bfloat16"], "cannot compute in bfloat16"),
        (spoil_nothing, ["--dtype", "float64"], "does not exist"),
        (spoil_nothing, ["--kv-cache", "endless"], "does not exist"),
        (spoil_nothing, ["--max-length", "30"], "--kv-cache static"),
        (spoil_nothing, ["--kv-cache", "bounded", "--max-length", "30"], "a bounded cache has no limit"),
        (spoil_nothing, ["--kv-cache", "static", "--max-length", "0"], "at least 1"),
        (spoil_nothing, ["--kv-cache", "static", "--max-length", str(2**31)], "more than any memory"),
        (spoil_nothing, ["--target", "tensorrt", "--kv-cache", "growing"], "runs no growing cache"),
        (spoil_nothing, ["--target", "toaster"], "no target"),
        (spoil_nothing, ["--recipe", "none.toml"], "There is no recipe"),
        (spoil_nothing, ["--precision", "int3"], "does not exist"),
        (spoil_nothing, ["--precision", "int8", "--target", "onnx"], "takes no --precision int8"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    spoil: Callable[[Path], None],
    flags: list[str],
    sentence: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    spoil(folder)
    before = sorted(tmp_path.iterdir())
    assert run(["export", "-m", str(folder), "-o", str(tmp_path / "out"), *flags]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_is_left_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text("mine")
    assert run(["export", "-m", str(checkpoint), "-o", str(output)]) == 2
    assert "--force" in capsys.readouterr().err
    assert (output / "config.json").read_text() == "mine"
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--force"]) == 2
    assert "holds config.json" in capsys.readouterr().err
    assert (output / "config.json").read_text() == "mine"
    (output / "config.json").unlink()
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--force", "--no-validate"]) == 0
    assert (output / "model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_midway_leaves_the_old_output(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, at the seam where the weights are written."""
    import errno

    import onnx_ir

    output = tmp_path / "out"
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--no-validate"]) == 0
    before = files(output)

    def full(model: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_ir, "save", full)
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--force"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert files(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["export", "-m", str(checkpoint), "-o", str(tmp_path / "out")]
    code = f"import sys; from doge_export.cli.app import run; sys.exit(run({arguments!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1:]) == (130, ["interrupted, nothing written"])
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
