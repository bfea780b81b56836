"""w8a8: Q/DQ around the large products, in the form that runtimes fuse, judged against the same rounding."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from doge_export.compress.calibration import CALIBRATIONS
from doge_export.validate import compare, validate
from doge_export.validate.diagnosis.bundle_weights import stored_activations, stored_weights

DENSE: dict[str, Any] = {}
EXPERTS = {"is_moe": True, "tie_word_embeddings": False}


@pytest.mark.parametrize("changes", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_form(changes: dict[str, Any], static_bundle: Any) -> None:
    _, bundle = static_bundle(changes)
    graph = onnx.load(bundle.model_path).graph
    by_output = {output: node for node in graph.node for output in node.output}
    tensors = {each.name: onnx.numpy_helper.to_array(each, str(bundle.path)) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    rounded = [node for node in products if node.input[0] in by_output
               and by_output[node.input[0]].op_type == "DequantizeLinear"]  # fmt: skip
    assert len(rounded) == 2 * 7 + 1
    pairs = {node.input[0] for node in rounded}
    assert len(pairs) == len(rounded), "a pair each, or onnxruntime does not fuse them"
    for output in pairs:
        before = by_output[by_output[output].input[0]]
        assert before.op_type == "QuantizeLinear"
        scale, zero = (tensors[name] for name in before.input[1:])
        assert scale.shape == () and scale.dtype == np.float32 and scale > 0
        assert zero.dtype == np.int8 and zero == 0
    for name, tensor in tensors.items():
        role = name.removesuffix(".T").split(".")[-2] if ".weight" in name else ""
        whole = role in ("dt_proj", "router_gate", "norm", "q_norm", "k_norm") or "layernorm" in role
        assert tensor.dtype == (np.int8 if role and not whole else tensor.dtype), name
        assert not whole or tensor.dtype == np.float32
    weights = {name for name in stored_weights(bundle)}
    assert len(weights) == 2 * (9 if changes else 7) + (2 if changes else 1)


@pytest.mark.parametrize("changes", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_onnxruntime_makes_integer_products(
    changes: dict[str, Any], static_bundle: Any, tmp_path: Path
) -> None:
    _, bundle = static_bundle(changes)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns of every optimized graph that is written
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MatMulIntegerToFloat"] == 2 * 7 + 1
    assert kinds["DequantizeLinear"] == 0, "none that it computes in every step"


@pytest.mark.parametrize("changes", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_judged_against_the_same_rounding(
    changes: dict[str, Any], static_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = static_bundle(changes)
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.rounding["kl_divergence"] > 0
    # One range wrong by a third, or activations that the reference does not round, are found.
    scales = stored_activations(bundle)
    assert len(scales) == 2 * 7 + 1
    name = "model.layers.1.mlp.down_proj.weight"
    for wrong in ({**scales, name: scales[name] * 1.5}, {}):
        monkeypatch.setattr(compare, "stored_activations", lambda bundle, wrong=wrong: wrong)
        assert not validate(bundle, checkpoint, quick=True).passed


@pytest.mark.parametrize("cache", ["static", "bounded"])
@pytest.mark.parametrize("changes", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_other_caches_are_judged_too(changes: dict[str, Any], cache: str, static_bundle: Any) -> None:
    """The ranges are read through that cache, and every schedule of it holds to the same rounding."""
    checkpoint, bundle = static_bundle(changes, cache=cache)
    assert bundle.manifest.cache.kind == cache and len(stored_activations(bundle)) == 2 * 7 + 1
    _, growing = static_bundle(changes)
    assert stored_activations(bundle) == pytest.approx(stored_activations(growing), rel=1e-4)
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.rounding["kl_divergence"] > 0


def test_what_is_kept(static_bundle: Any) -> None:
    _, bundle = static_bundle(DENSE, {"v_proj": "fp32"})
    assert not any("v_proj" in name for name in (*stored_weights(bundle), *stored_activations(bundle)))
    assert len(stored_activations(bundle)) == 2 * 6 + 1
    assert bundle.manifest.options.types == {"v_proj": "fp32"}


def test_the_router_too_where_it_is_asked_for(static_bundle: Any) -> None:
    checkpoint, bundle = static_bundle(EXPERTS, {"router_gate": "int8", "embed_tokens": "fp32"})
    routers = [name for name in stored_activations(bundle) if "router_gate" in name]
    assert len(routers) == 2
    assert not any("embed_tokens" in name for name in stored_weights(bundle))
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_calibrations() -> None:
    """Of 4096 bins: a few magnitudes far out are cut off by both rules, and of even ones nothing is."""
    rng = np.random.default_rng(0)
    far = np.abs(rng.normal(0, 100, 1_000_000)).astype(int)
    far[:20] = 4095
    counts = np.bincount(far, minlength=4096)
    percentile, entropy = CALIBRATIONS["percentile"], CALIBRATIONS["entropy"]
    assert CALIBRATIONS["min-max"] is None and percentile is not None and entropy is not None
    assert percentile(counts) == int(np.sort(far)[999_900]) + 1
    assert 250 < entropy(counts) < 600
    even = np.full(4096, 1000)
    assert percentile(even) >= 4095 and entropy(even) == 4096
