"""Scales of input channels: the folded model computes the same, and AWQ's scales gain where they stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate import validate
from doge_export.weights import (
    FORMATS,
    FULL,
    METHODS,
    apply_fold,
    dequantize,
    folds,
    quantize,
    scale_channels,
)
from tests.conftest import write_checkpoint

MODELS: list[dict[str, Any]] = [
    {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    {"is_moe": True},
]

INT4 = FORMATS["int4"]


@pytest.mark.parametrize("changes", MODELS, ids=["biases and a head of its own", "experts"])
def test_folded_scales_change_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    """Every fold there is, by scales up to 8: logits, keys and experts stay those of the reference."""
    from safetensors.numpy import load_file, save_file

    checkpoint = write_checkpoint(tmp_path / "checkpoint", **changes)
    scaled = write_checkpoint(tmp_path / "scaled", **changes)
    weights, rng = load_file(scaled / "model.safetensors"), np.random.default_rng(0)
    before = dict(weights)
    found = folds(weights)
    for fold in found:
        width = weights[fold.readers[0]].shape[1]
        apply_fold(weights, fold, np.exp2(rng.uniform(-3, 3, width)).astype(np.float32))
    changed = {name for name in weights if not np.array_equal(weights[name], before[name])}
    assert "lm_head.weight" in changed or "lm_head.weight" not in weights
    assert "model.embed_tokens.weight" not in changed
    assert not any(part in name for name in changed for part in ("o_proj", "dt_proj", "q_norm", "up_embed"))
    assert any("router_gate" in name for name in changed) == ("is_moe" in changes)
    assert len(found) == 2 * 3 + ("lm_head.weight" in weights)
    save_file(weights, scaled / "model.safetensors", metadata={"format": "pt"})
    options = ExportOptions.resolve(routing="per-token")
    bundle = export_model(str(scaled), tmp_path / "bundle", options, validate=False).bundle
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


def drawn(seed: int, outliers: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """A layer's MLP by name, the Hessians, and the inputs of gate and up."""
    rng = np.random.default_rng(seed)
    prefix = "model.layers.0."
    shapes = {"gate_proj": (48, 64), "up_proj": (48, 64), "down_proj": (64, 48)}
    weights = {f"{prefix}mlp.{role}.weight": rng.normal(0, 0.1, shape) for role, shape in shapes.items()}
    weights |= {f"{prefix}self_attn.{role}_proj.weight": rng.normal(0, 0.1, (32, 64)) for role in "qkv"}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{prefix}{norm}.weight"] = np.ones(64)
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    inputs = rng.normal(size=(300, 64)).astype(np.float32)
    if outliers:
        inputs[:, ::16] *= 30
    hessian = inputs.T @ inputs / 300
    known = {f"{prefix}mlp.{role}.weight": hessian for role in ("gate_proj", "up_proj")}
    return weights, known, inputs


def test_scales_gain_where_channels_stand_out() -> None:
    weights, hessians, inputs = drawn(0, outliers=True)
    before = {name: weight.copy() for name, weight in weights.items()}
    scaled = scale_channels(weights, hessians, lambda name: INT4, lambda w, form, h: quantize(w, form))
    norm = weights["model.layers.0.post_attention_layernorm.weight"]
    assert norm[::16].max() < np.delete(norm, slice(0, 64, 16)).min(), "what stands out is divided"
    for name, hessian in hessians.items():
        assert np.allclose(weights[name] * norm, before[name], rtol=1e-6)
        assert np.allclose(scaled[name], hessian * np.outer(norm, norm), rtol=1e-5)
        made, plain = dequantize(quantize(weights[name], INT4)) * norm, quantize(before[name], INT4)
        off, off_before = before[name] - made, before[name] - dequantize(plain)
        assert np.square(inputs @ off.T).sum() < 0.5 * np.square(inputs @ off_before.T).sum()
    # Of the others nothing is known, so they stay.
    assert all(np.array_equal(weights[n], before[n]) for n in weights if "attn" in n or "down" in n)


@pytest.mark.parametrize("seed", range(4))
def test_scales_that_do_not_gain_are_left_out(seed: int) -> None:
    """By the sum of the relative errors of the matrices that share an input, and with channels always 0."""
    weights, hessians, inputs = drawn(seed, outliers=False)
    inputs[:, 3:5] = 0
    hessians = dict.fromkeys(hessians, inputs.T @ inputs / len(inputs))
    before = {name: weight.copy() for name, weight in weights.items()}
    scale_channels(weights, hessians, lambda name: INT4, lambda w, form, h: quantize(w, form))
    norm = weights["model.layers.0.post_attention_layernorm.weight"]
    sums = np.zeros(2)
    for name in hessians:
        whole = np.square(inputs @ before[name].T).sum()
        for at, rounded in enumerate((quantize(weights[name], INT4), quantize(before[name], INT4))):
            off = before[name] - dequantize(rounded) * (norm if at == 0 else 1)
            sums[at] += np.square(inputs @ off.T).sum() / whole
    assert np.isfinite(norm).all() and sums[0] <= sums[1] * (1 + 1e-4)


def test_what_is_not_rounded_is_not_scaled() -> None:
    weights, hessians, _ = drawn(0, outliers=True)
    before = {name: weight.copy() for name, weight in weights.items()}
    found = scale_channels(weights, hessians, lambda name: FULL, METHODS["awq"].round)
    assert all(np.array_equal(weights[name], before[name]) for name in weights)
    assert all(found[name] is hessians[name] for name in hessians)
