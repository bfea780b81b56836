"""w8a8-fp8: the pairs around the products in float8, by what each runtime makes of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from doge_export.validate import compare, validate
from doge_export.validate.backends.reference import _to_float8
from doge_export.validate.diagnosis.bundle_weights import stored_activations, stored_weights

DENSE: dict[str, Any] = {}
EXPERTS = {"is_moe": True, "tie_word_embeddings": False}
E4M3 = ml_dtypes.float8_e4m3fn


def test_all_round_alike() -> None:
    """onnxruntime, the reference and the stored weights: ties to even, what is too large to 448, 0 to 0."""
    numbers = np.arange(127, dtype=np.uint8).view(E4M3).astype(np.float32)
    rng = np.random.default_rng(0)
    multiples = np.concatenate(
        [numbers, (numbers[1:] + numbers[:-1]) / 2, [449.0, 464.0, 1e6, 2.0**-11], rng.normal(0, 99, 5000)]
    ).astype(np.float32)
    multiples = np.concatenate([multiples, -multiples])
    scale = np.float32(2.0**-5)  # exact, so that ties stay ties
    tensors = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": multiples * scale})
    expected = np.clip(multiples, -448, 448).astype(E4M3).astype(np.float32)
    np.testing.assert_array_equal(found / scale, expected)
    np.testing.assert_array_equal(_to_float8(torch.from_numpy(multiples)).numpy(), expected)
    assert np.abs(expected).max() == 448


@pytest.mark.parametrize("changes", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_form(changes: dict[str, Any], static_bundle: Any) -> None:
    _, bundle = static_bundle(changes, precision="w8a8-fp8")
    graph = onnx.load(bundle.model_path).graph
    by_output = {output: node for node in graph.node for output in node.output}
    tensors = {each.name: onnx.numpy_helper.to_array(each, str(bundle.path)) for each in graph.initializer}
    rounded = [
        node
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[0] in by_output
        and by_output[node.input[0]].op_type == "DequantizeLinear"
    ]
    assert len(rounded) == 2 * 7 + 1
    for product in rounded:
        before = by_output[by_output[product.input[0]].input[0]]
        assert before.op_type == "QuantizeLinear"
        scale, zero = (tensors[name] for name in before.input[1:])
        assert scale.shape == () and scale.dtype == np.float32 and scale > 0
        assert zero.dtype == E4M3 and zero == 0
    for name, tensor in tensors.items():
        role = name.removesuffix(".T").split(".")[-2] if ".weight" in name else ""
        whole = role in ("dt_proj", "router_gate", "norm", "q_norm", "k_norm") or "layernorm" in role
        assert not role or tensor.dtype == (np.float32 if whole else E4M3), name
    assert len(stored_weights(bundle)) == 2 * (9 if changes else 7) + (2 if changes else 1)


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_onnxruntime_rounds_the_inputs_alone(target: str, static_bundle: Any, tmp_path: Path) -> None:
    """In each step; the matrices are floats once the session is there."""
    _, bundle = static_bundle(EXPERTS, precision="w8a8-fp8", target=target)
    assert bundle.manifest.options.dequantize_at_load
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns of every optimized graph that is written
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 2 * 7 + 1


@pytest.mark.parametrize(("changes", "target"), [(DENSE, "onnx"), (EXPERTS, "onnx"), (EXPERTS, "tensorrt")])
def test_judged_against_the_same_rounding(
    changes: dict[str, Any], target: str, static_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = static_bundle(changes, precision="w8a8-fp8", target=target)
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.rounding["kl_divergence"] > 0
    scales = stored_activations(bundle)
    assert len(scales) == 2 * 7 + 1
    if target == "tensorrt":
        return
    # One range wrong by a third, or activations that the reference does not round, are found.
    name = "model.layers.1.mlp.down_proj.weight"
    for wrong in ({**scales, name: scales[name] * 1.5}, {}):
        monkeypatch.setattr(compare, "stored_activations", lambda bundle, wrong=wrong: wrong)
        assert not validate(bundle, checkpoint, quick=True).passed


def test_what_is_kept_and_what_is_not(static_bundle: Any) -> None:
    _, bundle = static_bundle(EXPERTS, {"v_proj": "fp32", "router_gate": "fp8"}, precision="w8a8-fp8")
    scales = stored_activations(bundle)
    assert sum("router_gate" in name for name in scales) == 2 and len(scales) == 2 * 7 + 1
    assert not any("v_proj" in name for name in (*stored_weights(bundle), *scales))
