"""What decides a generation, where it is written, and what a user's own choice does. What is decided of
whom is in tests/wild/generations.py."""

import importlib.util
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from doge_export.cli.app import run
from doge_export.compress.quantize_bundle import quantize_bundle
from doge_export.core.bundle import Bundle, Manifest
from doge_export.core.errors import DogeExportError
from doge_export.core.generations.decision import Decision
from doge_export.export.evidence import decide, decide_generation, weigh
from doge_export.export.evidence.score import Score
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model, validate_bundle
from tests.generations._checkpoints import TRAINED, change_config, trained


def costs(mean: float, spread: float = 0.0, vocab: int = 256) -> Score:
    noise = np.random.default_rng(0).normal(0, spread, 400) if spread else 0.0
    return Score(np.full(400, mean) + noise, 400, vocab)


def test_bits_per_byte_are_of_the_bytes() -> None:
    assert Score(np.full(4, math.log(2)), 8, 256).bits_per_byte == pytest.approx(0.5)
    assert Score(np.array([1.0, math.nan]), 8, 256).bits_per_byte == math.inf


def test_a_language_model_costs_less_than_equal_chances() -> None:
    assert costs(2.0).is_language
    assert not costs(math.log(256)).is_language and not costs(5.2).is_language
    assert not Score(np.array([1.0, math.nan]), 8, 256).is_language


def test_better_is_better_than_by_chance() -> None:
    assert costs(2.0).clearly_better(costs(2.1))
    assert not costs(2.1).clearly_better(costs(2.0)) and not costs(2.0).clearly_better(costs(2.0))
    assert not costs(2.0).clearly_better(costs(2.02, spread=0.3))
    assert not costs(2.0).clearly_better(costs(2.005)), "so little is no evidence"
    assert costs(2.0).clearly_better(costs(math.nan)) and not costs(math.nan).clearly_better(costs(2.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """The trained checkpoint of December 2024, and its bundle."""
    root = tmp_path_factory.mktemp("december")
    checkpoint = trained("2-dense", root / "c")
    return checkpoint, export_model(str(checkpoint), root / "b", validate=False).bundle


def test_the_manifest_says_what_decided(
    exported: tuple[Path, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    decision = Bundle.open(exported[1].path).manifest.generation
    assert decision is not None
    assert (decision.generation, decision.decided_by) == ("2", "config")
    bits = decision.bits_per_byte
    assert min(bits, key=lambda name: bits[name]) == "2" and len(bits) >= 4
    assert "1" in decision.excluded and "num_cdmmoe_*" in str(decision)
    assert run(["inspect", str(exported[1].path), "--no-load"]) == 0
    assert "generation   2 (December 2024), by config.json" in capsys.readouterr().out


def test_a_rounded_bundle_keeps_it(tmp_path: Path) -> None:
    """Its rounded weights are not asked again."""
    checkpoint = trained("4-dense", tmp_path / "c")
    bundle = export_model(str(checkpoint), tmp_path / "b", validate=False).bundle
    rounded = quantize_bundle(bundle.path, tmp_path / "int8", "int8").exported.bundle
    assert bundle.manifest.generation is not None
    assert rounded.manifest.generation == bundle.manifest.generation


def test_a_certificate_says_it_too(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    checkpoint, bundle = exported
    files = [str(tmp_path / name) for name in ("r.json", "r.html")]
    given = ["validate", str(bundle.path), "--reference", str(checkpoint)]
    assert run([*given, "--json", files[0], "--html", files[1]]) == 0
    found = json.loads(Path(files[0]).read_text())
    assert found["generation"]["name"] == "2" and found["generation"]["bits_per_byte"]["2"] < 3
    assert any(check["name"].startswith("generation:") for check in found["checks"])
    page = Path(files[1]).read_text()
    assert "bits per byte as 2" in page and "decided by" in page


def test_the_user_may_choose_and_is_warned(
    exported: tuple[Path, Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`validate` misses then: the judge of the chosen generation cannot know."""
    checkpoint, _ = exported
    with caplog.at_level(logging.WARNING, "doge_export"):
        options = ExportOptions.resolve(generation="3a")
        bundle = export_model(str(checkpoint), tmp_path / "b", options, validate=False).bundle
    assert bundle.manifest.generation is not None and bundle.manifest.generation.decided_by == "user"
    assert "as 2 its weights are clearly the better language model" in caplog.text
    report = validate_bundle(bundle.path, str(checkpoint))
    missed = [check.name for check in report.checks if not check.passed]
    assert len(missed) == 1 and missed[0].startswith("generation:"), missed
    assert report.cause is not None and "generation 2" in report.cause


def test_dry_run_refuses_what_the_weights_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = change_config(trained("2-dense", tmp_path / "c"), dynamic_mask_ratio=0.0)
    assert run(["export", "-m", str(folder), "-o", str(tmp_path / "b"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "bits per byte as 2" in error and "--generation 2" in error and not (tmp_path / "b").exists()
    assert (
        run(["export", "-m", str(folder), "-o", str(tmp_path / "b"), "--dry-run", "--generation", "2"]) == 0
    )
    assert "generation 2 (December 2024), by the user" in capsys.readouterr().out


def test_without_torch_config_json_decides_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained("2-dense", tmp_path / "two")
    found, asked = importlib.util.find_spec, trained("3c-dense", tmp_path / "three")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    decision = decide_generation(folder)
    assert (decision.generation, decision.decided_by, dict(decision.bits_per_byte)) == ("2", "config", {})
    with pytest.raises(DogeExportError, match=r"pip install 'doge-export\[export\]'"):
        decide_generation(asked)


@pytest.mark.parametrize(
    "damage", [None, {}, {"name": "2"}, {"name": "2", "decided_by": "config", "evidence": 3}]
)
def test_a_damaged_decision_is_a_damaged_manifest(
    damage: Any, exported: tuple[Path, Bundle], tmp_path: Path
) -> None:
    path = exported[1].path / "doge_export.json"
    raw = json.loads(path.read_text())
    with pytest.raises(DogeExportError, match=r"doge_export\.json"):
        Manifest.from_dict({**raw, "generation": damage})
    assert Manifest.from_dict({key: raw[key] for key in raw if key != "generation"}).generation is None


def test_a_decision_comes_back(tmp_path: Path) -> None:
    decision = Decision("3b", "text", ("seen",), {"3b": 2.125, "3c": 3.5}, {"1": "why"})
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
    assert decision.figures == "2.12 bits per byte as 3b, 3.50 as 3c"
    endless = Decision("3b", "text", (), {"3b": 2.0, "3c": math.inf})
    assert json.loads(json.dumps(endless.to_dict(), allow_nan=False))["bits_per_byte"] == {"3b": 2.0}


@pytest.mark.parametrize("name", [*TRAINED, "random"])
def test_what_the_first_tokens_settle_the_others_do_not_change(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin reads the whole text in every candidate."""
    folder = trained("3b-dense" if name == "random" else name, tmp_path / "c")
    if name == "random":
        shuffle = np.random.default_rng(0).permutation
        tensors = load_file(folder / "model.safetensors")
        mixed = {key: shuffle(value.ravel()).reshape(value.shape) for key, value in tensors.items()}
        save_file(mixed, folder / "model.safetensors")
    found, scores = weigh(folder)
    monkeypatch.setattr(decide, "_settled", lambda scores: False)
    _, whole = weigh(folder)
    assert scores.keys() == whole.keys()
    assert decide._winner(scores, found) == decide._winner(whole, found)
    for each in scores:
        assert decide._better(scores, each) == decide._better(whole, each)
    if name == "random":
        assert max(score.nats.size for score in scores.values()) < 128, "nothing is settled by more"
