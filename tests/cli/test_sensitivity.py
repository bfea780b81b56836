"""`sensitivity` and `quantize --scheme searched` on a trained model and text that was kept back."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from doge_export.cli.app import run
from doge_export.compress import budget_search as searched
from doge_export.compress.budget_search import Budget, parse_budget, search_bundle
from doge_export.compress.calibration import windows
from doge_export.compress.mixed_precision import Mixture, Probe, Study, allocation, costs, parts_of
from doge_export.compress.quantize_bundle import checkpoint_weights, judge, quantize_bundle
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate import validate
from doge_export.weights import FULL, HALF, METHODS, dequantize, quantize, role_of, stays_float
from tests._precision import form
from tests.conftest import write_checkpoint

HELDOUT = presets.models_folder() / "heldout.txt"

INT8 = form("int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """doge-tiny with its first two layers alone: half as many matrices to measure, in half of the time."""
    trained, folder = presets.models_folder() / "doge-tiny", tmp_path_factory.mktemp("shallow") / "doge"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    tensors = load_file(trained / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not re.search(r"layers\.[2-9]", name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("full") / "bundle"
    options = ExportOptions.resolve(routing="per-token")
    return export_model(str(checkpoint), output, options, validate=False).bundle


def test_a_probe_measures_what_a_bundle_is(source: Bundle, tmp_path: Path) -> None:
    """The same KL as a file with these weights has, by other code."""
    ids = windows(source, parts_of(HELDOUT.read_text())[2], 2)
    probe = Probe(source, ids)
    zero = probe.effect({})
    assert (zero.kl_divergence, zero.top1_agreement, zero.changed_keys) == (0, 1, 0)
    types = {"v_proj": "int4", "embed_tokens": "int8:32", "dt_proj": "int4"}
    made = quantize_bundle(source.path, tmp_path / "out", "int8", types={**types, "layers.0": "fp32"})
    stored = made.exported.bundle.manifest.options.types
    changed = {}
    for name, weight in checkpoint_weights(source).items():
        rounds = role_of(name) and not stays_float(name) and "layers.0." not in name
        dtype = types.get(role_of(name), "int8" if rounds else "fp32")
        if dtype != "fp32":
            changed[name] = dequantize(quantize(weight, form(dtype)))
    assert stored["layers.0"] == "fp32" and any("dt_proj" in name for name in changed)
    found, other = probe.effect(changed), judge(source, made.exported.bundle, ids, lambda steps, stage: None)
    assert other is not None
    assert found.kl_divergence == pytest.approx(other.kl_divergence, rel=0.02)
    assert abs(found.top1_agreement - other.top1_agreement) <= 0.003
    assert found.changed_keys is not None and found.changed_keys > 0.5 and found.changed_experts is None


def test_sensitivity_goes_on_where_it_stopped(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ["sensitivity", str(source.path), "--text", str(HELDOUT), "--type", "int4", "--windows", "1"]
    arguments += ["--json", str(output), "--svg", str(picture)]
    effect, count = Probe.effect, [0]

    def limited(self: Probe, *given: Any) -> Any:
        count[0] += 1
        if count[0] == 20:
            raise KeyboardInterrupt
        return effect(self, *given)

    monkeypatch.setattr(Probe, "effect", limited)
    assert run(arguments) == 130
    assert not output.exists() and not picture.exists()
    assert run(arguments) == 0
    assert not list(tmp_path.glob(".*")), "no journal is left"
    rows = json.loads(output.read_text())["rows"]
    # 19 before, the one that was interrupted, and the rest: 8 roles in all layers and in each of 2, one table
    assert len(rows) == 8 * 3 + 1 and count[0] == len(rows) + 1
    by_name = {row["name"]: row for row in rows}
    assert by_name["v_proj"]["kl_divergence"] > 5 * by_name["q_proj"]["kl_divergence"]
    assert by_name["dt_proj"]["saved_bytes"] == 0 and by_name["dt_proj"]["changed_keys"] > 0
    assert by_name["layers.1.down_proj"]["layer"] == 1
    assert "<svg" in picture.read_text() and "down_proj" in picture.read_text()
    assert "embed_tokens" in capsys.readouterr().out


def test_a_searched_mixture_beats_one_type_in_its_bytes(
    source: Bundle,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (costs, allocation):
        monkeypatch.setattr(module, "FORMS", (form("int4"), INT8))
    monkeypatch.setattr(Study, "scalings", (None,))  # the other is below
    for name in ("compress.mixed_precision.study", "compress.quantize_bundle"):
        monkeypatch.setattr(importlib.import_module(f"doge_export.{name}"), "_CALIBRATION", 8)
    monkeypatch.setitem(Study.__init__.__kwdefaults__, "most", 2)
    monkeypatch.setattr("doge_export.compress.budget_search.NEIGHBOURS", 1)
    study = Study(source, HELDOUT.read_text(), method=METHODS["search"])
    assert not np.isin(windows(source, parts_of(HELDOUT.read_text())[2], 4), study._ids).all()
    arguments = ["quantize", str(source.path), "--text", str(HELDOUT), "--json", "-"]
    command = [*arguments, "--scheme", "searched-search", "-o"]
    assert run([*command, str(tmp_path / "mixed"), "--max-bytes", "0.23"]) == 0
    mixed = json.loads(capsys.readouterr().out)
    made = Bundle.open(tmp_path / "mixed")
    assert made.model_bytes <= 0.23 * source.model_bytes
    assert set(mixed["types"].values()) > {"int4"} and not list(tmp_path.glob(".*"))
    assert run([*arguments, "--scheme", "int4-search", "-o", str(tmp_path / "alike")]) == 0
    assert mixed["kl_divergence"] < 0.5 * json.loads(capsys.readouterr().out)["kl_divergence"]
    assert validate(made, checkpoint, quick=True).passed
    assert run([*command, str(tmp_path / "small"), "--max-bytes", "0.05"]) == 2
    assert "No mixture of types is that small" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*")), "what measured nothing keeps nothing"


def test_a_mixture_of_so_much_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest that keeps the bound on what is searched by, with its standard error, which is said."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1, vocab_size=4096)
    copy_tokenizer_files(presets.models_folder() / "doge-tiny", checkpoint)
    options = ExportOptions.resolve(routing="per-token")
    source = export_model(str(checkpoint), tmp_path / "full", options, validate=False).bundle
    for module in (costs, allocation):
        monkeypatch.setattr(module, "FORMS", (form("int4"), INT8, FULL))
    text, output, figures = tmp_path / "text.txt", tmp_path / "near", tmp_path / "near.json"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    command = ["quantize", str(source.path), "--scheme", "searched-nearest", "--text", str(text)]
    command += ["-o", str(output), "--min-top1", "0.9", "--json", str(figures)]
    assert run(command) == 0
    found, said = json.loads(figures.read_text()), capsys.readouterr()
    searched = found["searched"]
    assert 1 > searched["top1_agreement"] - searched["top1_error"] >= 0.9 and searched["top1_error"] > 0
    assert found["bytes"] == Bundle.open(output).model_bytes < 0.5 * source.model_bytes
    assert "one standard error below which is at least 90.00%" in said.out
    kept = found["top1_agreement"] - found["top1_error"] >= 0.9
    assert kept == ("On the text kept back" not in said.err)


def test_a_mixture_with_scales_is_stored_as_it_was_measured(
    source: Bundle, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(source, HELDOUT.read_text(), method=METHODS["search"], max_windows=2)
    types = {name: INT8 for name in study.matrices if not stays_float(name)}
    chosen = Mixture(types, study.bytes(types), study.effect(types, INT8), INT8)
    monkeypatch.setattr(searched, "measure", lambda *given: {})
    monkeypatch.setattr(searched, "choose", lambda *given: chosen)
    made = search_bundle(study, tmp_path / "out", HELDOUT.read_text(), Budget(max_kl=1.0))
    bundle, expected = made.exported.bundle, checkpoint_weights(source)
    assert bundle.manifest.options.rounding == "awq"
    kept = study.basis(INT8).weights
    assert any(not np.array_equal(kept[name], expected[name]) for name in kept if "layernorm" in name)
    found = judge(source, bundle, study._ids, lambda steps, stage: None)
    assert found is not None
    assert found.kl_divergence == pytest.approx(made.mixture.effect.kl_divergence, rel=0.02)
    assert validate(bundle, checkpoint, quick=True).passed


def test_what_float16_has_not_is_not_stored_in_it(source: Bundle) -> None:
    study = Study(source, HELDOUT.read_text(), method=METHODS["nearest"], max_windows=1)
    name = next(each for each in study.matrices if "v_proj" in each)
    assert study.fits(name, HALF)
    study = Study(source, HELDOUT.read_text(), method=METHODS["nearest"], max_windows=1)
    weights = dict(study._weights)
    weights[name] = weights[name] * np.float32(1e6)
    study.__dict__["_weights"] = weights
    others = set(study.matrices) - {name}
    assert not study.fits(name, HALF) and all(study.fits(each, HALF) for each in others)
    assert study.fits(name, FULL) and study.fits(name, INT8)


def test_few_windows_are_from_all_over_the_text_and_measured_as_by_themselves(
    source: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, module = HELDOUT.read_text(), importlib.import_module("doge_export.compress.mixed_precision.study")
    monkeypatch.setattr(module, "_FEW", 2)
    study = Study(source, text, method=METHODS["nearest"], max_windows=5)
    order = windows(source, parts_of(text)[1], 5)
    np.testing.assert_array_equal(study._ids, order[[0, 4, 1, 2, 3]])
    types = {name: form("int4") for name in study.matrices if "down_proj" in name}
    few, whole = (study.effect(types, few=few) for few in (True, False))
    assert few != whole and study.effect(types, few=True) == few
    monkeypatch.setattr(module, "windows", lambda *given: order[[0, 4]])
    alone = Study(source, text, method=METHODS["nearest"])
    assert alone.effect(types) == alone.effect(types, few=True) == few
    monkeypatch.setattr(module, "_MEMORY", 1)
    assert Study(source, text, method=METHODS["nearest"]).tokens == 512, "one window always fits"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheme", "searched", "--max-bytes", "0.2"], "learns from a text"),
        (
            ["--scheme", "searched", "--text", str(HELDOUT)],
            "Give one of --max-bytes, --max-kl and --min-top1",
        ),
        (["--scheme", "searched-best", "--max-kl", "0.1"], "There is no scheme 'searched-best'"),
        (
            ["--scheme", "searched", "--text", str(HELDOUT), "--set", "v_proj=int8"],
            "chooses every type itself",
        ),
        (["--scheme", "searched", "--text", str(HELDOUT), "--max-bytes", "few"], "neither a number of bytes"),
        (["--scheme", "int4", "--max-kl", "0.1"], "belong to --scheme searched"),
        (["--scheme", "int4", "--min-top1", "0.9"], "belong to --scheme searched"),
        (["--scheme", "searched", "--text", str(HELDOUT), "--min-top1", "99"], "--min-top1 99 is no share"),
        (
            ["--scheme", "searched", "--text", str(HELDOUT), "--min-top1", "0.99", "--max-kl", "1"],
            "Give one of",
        ),
    ],
)
def test_wrong_budgets(
    arguments: list[str], sentence: str, source: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", str(source.path), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert parse_budget("0.5", 1000) == 500 and parse_budget("700", 1000) == 700
