"""`doge-export validate`: limits and text of one's own, and what the certificate holds beside the checks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from doge_export.cli.app import run
from doge_export.core import presets
from doge_export.core.bundle import Bundle, write_manifest

Export = Callable[..., tuple[Path, Bundle]]
TINY = presets.models_folder() / "doge-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tiny") / "bundle"
    assert run(["export", "-m", "doge-tiny", "-o", str(output), "--no-validate"]) == 0
    return output


def test_limits_of_ones_own(exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = exported()
    arguments = ["validate", str(bundle.path), "--reference", str(checkpoint)]
    output = tmp_path / "report.json"
    limits = ["--limit", "top5_agreement=0.9", "--limit", "relative_error=1e-3", "--json", str(output)]
    assert run([*arguments, *limits]) == 0
    names = {check["name"]: check["limit"] for check in json.loads(output.read_text())["checks"]}
    assert names["prefill 13: top-5 agreement"] == 0.9
    assert names["prefill 13, kernels: relative error of logits"] == 1e-3
    capsys.readouterr()
    assert run([*arguments, "--limit", "relative_error=1e-12"]) == 1
    assert "relative error of logits" in capsys.readouterr().out
    for wrong, sentence in (
        ("relative=1", "There is no limit 'relative'"),
        ("relative_error=much", "'much' is not a number"),
        ("relative_error", "is not key=value"),
    ):
        assert run([*arguments, "--limit", wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_what_is_measured_beside_the_checks(tiny: Path, tmp_path: Path) -> None:
    """The whole certificate of a trained model: the judge against itself, greedy tokens, margins, drift."""
    output, page, text = tmp_path / "report.json", tmp_path / "page.html", tmp_path / "text.txt"
    text.write_text("A line of Ünïcode.\nAnd one more, 12345.\n", encoding="utf-8")
    arguments = ["validate", str(tiny), "--reference", "doge-tiny", "--text", str(text)]
    assert run([*arguments, "--json", str(output), "--html", str(page)]) == 0
    found = json.loads(output.read_text())
    assert found["passed"] and found["cause"] is None
    assert len(found["reference"]) == 3
    assert all(0 <= entry["max_abs_diff"] <= entry["limit"] for entry in found["reference"])
    assert found["greedy"]["agreed"] == found["greedy"]["new_tokens"] > 0
    ties = found["ties"]
    assert found["margins"]["keys"][0] == ties["tied_rows"]
    assert sum(found["margins"]["keys"]) == ties["boundary_rows"]
    assert set(found["margins"]) == {"bins", "keys", "experts"} and not any(found["margins"]["experts"])
    parts = found["drift"]["parts"]
    assert {"embedding", "head", "0.attention", "3.feed_forward"} <= set(parts)
    assert max(parts.values()) <= found["drift"]["limit"]
    assert found["tokenizer"]["texts"] >= 3 and found["tokenizer"]["first_difference"] is None
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<svg") == 2 and "<title>0.attention: " in shown
    assert shown.count("<circle") == sum(not name.endswith((".keys", ".experts")) for name in parts)


def test_another_tokenizer_is_found(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One merge of the bundle's tokenizer is gone; the manifest fits."""
    copy = shutil.copytree(tiny, tmp_path / "copy")
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    del tokenizer["model"]["merges"][:40]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    raw = json.loads((copy / "doge_export.json").read_text(encoding="utf-8"))
    write_manifest(
        copy, raw["options"], raw["versions"], raw["graph"], raw["cache"], raw["call"], raw.get("decode")
    )
    output = tmp_path / "report.json"
    assert run(["validate", str(copy), "--reference", "doge-tiny", "--json", str(output)]) == 1
    found = json.loads(output.read_text())
    missed = {check["name"] for check in found["checks"] if not check["passed"]}
    assert missed == {"tokenizer: texts with other ids"}
    assert found["tokenizer"]["first_difference"]
    assert "tokenizer: texts with other ids" in found["cause"]


def test_a_checkpoint_that_is_not_finite(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is anything held to it nor is it taken for another's weights."""
    from safetensors.numpy import load_file, save_file

    checkpoint = shutil.copytree(TINY, tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    for arguments in (
        ["validate", str(tiny), "--reference", str(checkpoint)],
        ["export", "-m", str(checkpoint), "-o", str(tmp_path / "out")],
    ):
        assert run(arguments) == 2
        assert "up_proj.weight of" in (error := capsys.readouterr().err) and "not finite" in error
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]
