"""v_proj rounded with the dt_proj behind it in mind: dt hardly moves, and fewer rows keep other keys."""

from pathlib import Path

import numpy as np
import pytest

from doge_export.compress.calibration import hessians, windows
from doge_export.compress.mixed_precision import Probe, parts_of
from doge_export.compress.quantize_bundle import checkpoint_weights
from doge_export.core import presets
from doge_export.export.pipeline import export_model
from doge_export.weights import METHODS, dequantize, embedding_metric, output_metrics
from tests._precision import form

VALUES = "model.layers.0.self_attn.v_proj.weight"
RANKS = "model.layers.0.self_attn.dt_proj.weight"


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4-asym"])
@pytest.mark.parametrize("heads", [1, 2])
def test_dt_stays_and_the_values_hardly_move(dtype: str, heads: int) -> None:
    rng = np.random.default_rng(heads)
    inputs = rng.normal(size=(2000, 96)) @ rng.normal(size=(96, 96))
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    weights = {VALUES: rng.normal(size=(64, 96)), RANKS: rng.normal(size=(heads, 64)) * 10}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    metric = output_metrics(weights, {VALUES: hessian})[VALUES]
    gptq = METHODS["gptq"].round
    off = [
        weights[VALUES] - dequantize(gptq(weights[VALUES], form(dtype), hessian, each))
        for each in (None, metric)
    ]
    values = [np.square(inputs @ each.T).mean() for each in off]
    ranks = [np.square(inputs @ each.T @ weights[RANKS].T).mean() for each in off]
    assert ranks[1] < 0.2 * ranks[0]
    assert values[1] < 1.3 * values[0]


def test_what_has_a_metric() -> None:
    """v_proj by the dt_proj behind it, what writes to the states by those of later layers."""
    rng = np.random.default_rng(0)
    weights = {f"model.layers.{layer}.input_layernorm.weight": np.ones(8, np.float32) for layer in (0, 1)}
    for layer in (0, 1):
        for role, shape in {"q": (8, 8), "v": (4, 8), "dt": (2, 4), "o": (8, 8)}.items():
            name = f"model.layers.{layer}.self_attn.{role}_proj.weight"
            weights[name] = rng.normal(size=shape).astype(np.float32)
    known = {name: np.eye(8, dtype=np.float32) for name in weights if "_proj" in name and "dt" not in name}
    metrics = output_metrics(weights, known)
    assert sorted(metrics) == sorted([VALUES, VALUES.replace("0", "1"), VALUES.replace("v_proj", "o_proj")])
    assert output_metrics(weights, {}) == {}, "nothing is known of the inputs"
    # By the chain rule: states -> dt of the layer behind, each head in its own size.
    metric = metrics[VALUES.replace("v_proj", "o_proj")]
    rows = weights[RANKS.replace("0", "1")] @ weights[VALUES.replace("0", "1")]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    along = rows.T @ rows
    np.testing.assert_allclose(metric, np.eye(8) + 3 * along * 8 / np.trace(along), rtol=1e-5, atol=1e-6)
    zero = {name: np.zeros_like(weight) for name, weight in weights.items()}
    assert all(np.isfinite(each).all() for each in output_metrics(zero, known).values())


def test_what_an_embedding_is_worth() -> None:
    """By differences: what a random error of a row does to the first MLP's result, against the metric."""
    rng = np.random.default_rng(1)
    tokens, width, inner = 4000, 16, 24
    states = rng.normal(size=(tokens, width)).astype(np.float32)
    names = {role: f"model.layers.0.mlp.{role}_proj.weight" for role in ("gate", "up", "down")}
    weights = {names[role]: rng.normal(size=(inner, width)) / 4 for role in ("gate", "up")}
    weights |= {names["down"]: rng.normal(size=(width, inner)) * np.geomspace(0.05, 2, inner)}
    weights |= {"model.layers.0.input_layernorm.weight": np.ones(width)}

    def mlp(x: np.ndarray) -> np.ndarray:
        gate = x @ weights[names["gate"]].T
        inside = gate / (1 + np.exp(-gate)) * (x @ weights[names["up"]].T)
        return np.asarray(inside @ weights[names["down"]].T)

    gate = states @ weights[names["gate"]].T
    inside = gate / (1 + np.exp(-gate)) * (states @ weights[names["up"]].T)
    known = {names["gate"]: states.T @ states / tokens, names["up"]: states.T @ states / tokens}
    known[names["down"]] = inside.T @ inside / tokens
    metric = embedding_metric(weights, known, width) - 0.2 * np.eye(width)
    assert np.trace(metric) == pytest.approx(width)
    directions = np.linalg.qr(rng.normal(size=(width, width)))[0]
    measured = [np.square(mlp(states + 1e-3 * each) - mlp(states)).mean() for each in directions]
    expected = [each @ metric @ each for each in directions]
    assert np.corrcoef(np.log(measured), np.log(expected))[0, 1] > 0.8
    assert (embedding_metric({}, {}, 3) == 1.2 * np.eye(3)).all()


def test_fewer_rows_keep_other_keys(tmp_path: Path) -> None:
    """v_proj alone in int8, on text that calibrated nothing."""
    text = (presets.models_folder() / "heldout.txt").read_text(encoding="utf-8")[:60_000]
    full = export_model("doge-tiny", tmp_path / "full", validate=False).bundle
    probe = Probe(full, windows(full, parts_of(text)[2], 2))
    known = hessians(full, windows(full, parts_of(text)[0], 8))
    weights = checkpoint_weights(full)
    metrics = {n: each for n, each in output_metrics(weights, known).items() if "v_proj" in n}
    assert len(metrics) == full.config.num_hidden_layers
    gptq = METHODS["gptq"].round
    plain, mended = (
        probe.effect(
            {
                name: dequantize(gptq(weights[name], form("int8"), known[name], metric if used else None))
                for name, metric in metrics.items()
            }
        )
        for used in (False, True)
    )
    assert plain.changed_keys is not None and mended.changed_keys is not None
    assert mended.changed_keys < 0.5 * plain.changed_keys
    assert mended.typical_kl < 0.5 * plain.typical_kl
