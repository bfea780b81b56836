"""Scales and norms that learn: the rounded model comes nearer to the full one, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.cli.app import run
from doge_export.compress import distillation as module
from doge_export.compress.budget_search import Budget, search_bundle
from doge_export.compress.distillation import tune
from doge_export.compress.mixed_precision import Mixture, Study
from doge_export.compress.quantize_bundle import judge, judged_windows, quantize_bundle
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.progress import reporting, silent
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate import validate
from doge_export.weights import HALF, METHODS, Quantized, dequantize, quantize, role_of, stays_float, tunable
from tests._precision import form
from tests.conftest import write_checkpoint

#: Reads doge-tiny's tokens; the window is shorter than the texts.
SIZES: dict[str, Any] = {"vocab_size": 4096, "max_position_embeddings": 128, "num_hidden_layers": 1}
HELDOUT = presets.models_folder() / "heldout.txt"
Weights = dict[str, np.ndarray]


def drawn(folder: Path, **changes: Any) -> tuple[DogeConfig, Weights]:
    from safetensors.numpy import load_file

    checkpoint = write_checkpoint(folder, **changes)
    return Checkpoint.open(checkpoint).config, load_file(checkpoint / "model.safetensors")


def rounded(weights: Weights, dtype: str) -> dict[str, Quantized]:
    matrices = [name for name in weights if role_of(name) and not stays_float(name)]
    return {name: quantize(weights[name], form(dtype)) for name in matrices}


def texts(config: DogeConfig, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (count, 48))


def loss(
    config: DogeConfig, full: Weights, weights: Weights, made: dict[str, Quantized], **more: Any
) -> float:
    student = module._Student(config, full, weights, made, more.pop("routing", "per-token"))
    return student.loss(texts(config, 8, seed=1), "", silent)


@pytest.fixture(autouse=True)
def _half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TUNING", 160)


@pytest.mark.parametrize(
    ("dtype", "experts"),
    [(dtype, experts) for dtype in ("int4", "int8", "int4-asym", "nvfp4") for experts in (False, True)]
    + [("fp8", False)],
)
def test_a_text_that_was_not_seen_loses_less(dtype: str, experts: bool, tmp_path: Path) -> None:
    config, weights = drawn(tmp_path / "model", is_moe=experts)
    made = rounded(weights, dtype)
    read: list[int] = []
    found, floats = tune(
        config,
        weights,
        weights,
        made,
        texts(config, 40),
        routing="per-token",
        progress=reporting(lambda tokens, stage: read.append(tokens)),
    )
    assert loss(config, weights, weights | floats, found) < 0.97 * loss(config, weights, weights, made)
    assert sum(read) == (module.TUNING + 2 * 4) * 48, "every tenth window is kept back, and read twice"
    assert set(found) == set(made) and set(floats) == set(tunable(weights))
    for name, before in made.items():
        after = found[name]
        np.testing.assert_array_equal(after.values, before.values)
        assert after.scales.dtype == before.scales.dtype and after.scales.shape == before.scales.shape
        assert after.global_scale == before.global_scale and np.isfinite(dequantize(after)).all()
        if before.zeros is not None:
            np.testing.assert_array_equal(after.zeros, before.zeros)
    assert any(not np.array_equal(found[name].scales, made[name].scales) for name in made)
    for name, numbers in floats.items():
        assert numbers.dtype == weights[name].dtype and numbers.shape == weights[name].shape
        assert "norm" in name or "residual" in name
        assert not np.array_equal(numbers, weights[name])


def test_what_is_chosen_by_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weight of choices, dt and the router's scores are nearer to the full model's than without."""
    config, weights = drawn(tmp_path / "model", is_moe=True)
    made = rounded(weights, "int4")

    def off(choices: float) -> float:
        monkeypatch.setattr(module, "_CHOICES", choices)
        found, floats = tune(config, weights, weights, made, texts(config, 40), routing="per-token")
        student = module._Student(config, weights, weights | floats, found, "per-token")
        with torch.no_grad():
            full, mine = (
                student._run(each, texts(config, 8, seed=1))[1]
                for each in (student._full, student._tensors())
            )
        assert len(full) == len(mine) == 2 * config.num_hidden_layers
        return sum(
            float((one - other).abs().mean() / one.std()) for one, other in zip(full, mine, strict=True)
        )

    assert off(module._CHOICES) < off(0.0)


def test_where_nothing_is_gained_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = drawn(tmp_path / "model")
    made = rounded(weights, "int4")
    monkeypatch.setattr(module, "_RATE", 30.0)
    found, floats = tune(config, weights, weights, made, texts(config, 12), routing="per-token")
    assert found == made and floats == {}


def test_a_dt_of_zeros_is_no_obstacle(tmp_path: Path) -> None:
    """What is chosen by has no spread there."""
    config, weights = drawn(tmp_path / "model")
    weights |= {name: np.zeros_like(each) for name, each in weights.items() if "dt_proj.weight" in name}
    made = rounded(weights, "int4")
    found, floats = tune(config, weights, weights, made, texts(config, 40), routing="per-token")
    assert loss(config, weights, weights | floats, found) < loss(config, weights, weights, made)


def test_rows_of_a_batch_do_not_mix(tmp_path: Path) -> None:
    """Of "reference" routing a row's experts depend on what else is in the call."""
    config, weights = drawn(tmp_path / "model", is_moe=True)
    made, ids = rounded(weights, "int4"), texts(config, 3)
    student = module._Student(config, weights, weights, made, "reference")
    alone = [student.loss(row[None], "", silent) for row in ids]
    assert student.loss(ids, "", silent) == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_same_twice_and_of_a_model_in_float16(tmp_path: Path) -> None:
    config, weights = drawn(tmp_path / "model", dtype="float16", tie_word_embeddings=False)
    made = rounded(weights, "int4")
    (first, floats), (second, again) = (
        tune(config, weights, weights, made, texts(config, 9), routing="per-token") for _ in range(2)
    )
    assert floats and all(each.dtype == np.float16 for each in floats.values())
    for name in made:
        np.testing.assert_array_equal(first[name].scales, second[name].scales)
    for name in floats:
        np.testing.assert_array_equal(floats[name], again[name])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("full")
    checkpoint = write_checkpoint(folder / "checkpoint", is_moe=True, **SIZES)
    copy_tokenizer_files(presets.models_folder() / "doge-tiny", checkpoint)
    options = ExportOptions.resolve(routing="per-token")
    return export_model(str(checkpoint), folder / "tiny", options, validate=False).bundle


@pytest.fixture
def text() -> str:
    return HELDOUT.read_text(encoding="utf-8")[:40_000]


@pytest.mark.parametrize("method", ["gptq-tuned", "awq-gptq-tuned"])
def test_a_tuned_bundle_is_what_was_tuned_and_validates(
    method: str, source: Bundle, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = f"int4-{method}"
    types = {"up_proj": "fp16", "dt_proj": "int8"}
    made = quantize_bundle(source.path, tmp_path / "tuned", scheme, text, types=types)
    plain = quantize_bundle(source.path, tmp_path / "plain", scheme.removesuffix("-tuned"), text, types=types)
    assert made.divergence is not None and plain.divergence is not None
    assert made.divergence.kl_divergence < plain.divergence.kl_divergence
    bundle = made.exported.bundle
    sizes = [
        {name: entry.bytes for name, entry in each.manifest.files.items() if "onnx" in name}
        for each in (bundle, plain.exported.bundle)
    ]
    assert sizes[0] == sizes[1], "nothing grows"
    checkpoint = source.path.parent / "checkpoint"
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert run(["verify", str(bundle.path), "--rebuild", "--reference", str(checkpoint)]) == 2


def test_a_mixture_is_tuned_at_the_end(
    source: Bundle, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from doge_export.compress import budget_search as searched

    study = Study(source, text, method=METHODS["gptq-tuned"], max_windows=2)
    types = {name: HALF if stays_float(name) else form("int4:16") for name in study.matrices}
    chosen = Mixture(types, study.bytes(types), study.effect(types, form("int8")), form("int8"))
    monkeypatch.setattr(searched, "measure", lambda *given: {})
    monkeypatch.setattr(searched, "choose", lambda *given: chosen)
    made = search_bundle(study, tmp_path / "out", text, Budget(max_kl=1.0))
    bundle = made.exported.bundle
    assert bundle.manifest.options.rounding == "awq-gptq-tuned"
    assert bundle.manifest.options.types == {name: str(each) for name, each in made.types.items()}
    ids = judged_windows(source, text)
    tuned = judge(source, bundle, ids, lambda steps, stage: None)
    monkeypatch.setattr(module, "_RATE", 0.0)
    alike = search_bundle(study, tmp_path / "untuned", text, Budget(max_kl=1.0)).exported.bundle
    plain = judge(source, alike, ids, lambda steps, stage: None)
    assert tuned is not None and plain is not None
    assert tuned.kl_divergence < plain.kl_divergence
    assert validate(bundle, source.path.parent / "checkpoint", quick=True).passed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quantize", "{}", "-o", "{}-x", "--scheme", "int4-gptq-tuned"], "learns from a text"),
        (
            ["quantize", "{}", "-o", "{}-x", "--scheme", "int4", "--set", "v_proj=@gptq-tuned"],
            "cannot be rounded by 'gptq-tuned'",
        ),
        (["sensitivity", "{}", "--text", str(HELDOUT), "--method", "gptq-tuned"], "No matrix is rounded by"),
        (["export", "-m", "doge-tiny", "-o", "{}-x", "--precision", "int4-gptq-tuned"], "precision"),
    ],
)
def test_wrong_input(
    arguments: list[str], sentence: str, source: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([each.format(source.path) for each in arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not source.path.with_name(f"{source.path.name}-x").exists()
