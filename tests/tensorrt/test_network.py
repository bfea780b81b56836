"""The parsed network, walked: types, the cache in place, every weight once, and what the parser refuses."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.engines.network import Network, parse, summary
from doge_export.runtime.tensorrt.kinds import Opened
from doge_export.runtime.tensorrt.refusals import builder_refusal

TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
#: What does the work, and moves the cache; all of it in the type of the file.
HEAVY = {"MATRIX_MULTIPLY", "KV_CACHE_UPDATE", "TOPK", "ROTARY_EMBEDDING", "GATHER", "CONCATENATION"}


def layers(network: Network) -> list[Any]:
    definition = network.definition
    return [definition.get_layer(index) for index in range(definition.num_layers)]


def node_of(layer: Any) -> str:
    """The ONNX node that it comes from; empty for what the parser adds by itself."""
    text = str(layer.metadata)
    return text.removeprefix("[ONNX Layer: ").removesuffix("]") if text.startswith("[ONNX Layer: ") else ""


def exported_as(exported: Any, dtype: str, **changes: Any) -> Bundle:
    bundle: Bundle = exported({"target": "tensorrt", "max_length": 40, "dtype": dtype}, **changes)[1]
    return bundle


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", TYPES)
def test_walk(dtype: str, moe: bool, exported: Any, rtx: Opened) -> None:
    bundle = exported_as(exported, dtype, is_moe=moe)
    network = parse(rtx, bundle.model_path)
    definition, trt = network.definition, rtx.trt

    # The interface is the manifest's.
    inputs = {value.name: value for value in map(definition.get_input, range(definition.num_inputs))}
    outputs = [definition.get_output(index) for index in range(definition.num_outputs)]
    assert set(inputs) == {spec.name for spec in bundle.manifest.inputs}
    assert {value.name for value in outputs} == {spec.name for spec in bundle.manifest.outputs}
    assert not any(value.is_shape_tensor for value in inputs.values())  # all of them are read on the GPU
    for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs):
        value = inputs.get(spec.name) or next(value for value in outputs if value.name == spec.name)
        assert value.dtype.name == ("INT64" if spec.dtype == "int64" else TYPES[dtype])
        assert tuple(value.shape) == tuple(-1 if isinstance(dim, str) else dim for dim in spec.shape)

    # Keys and values are written where they are read: input and output of one layer.
    updates = [layer for layer in layers(network) if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    pairs = {(layer.get_input(0).name, layer.get_output(0).name) for layer in updates}
    assert pairs == {
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
        for layer in range(bundle.config.num_hidden_layers)
        for part in ("key", "value")
    }

    # Every weight once, in its type.
    stored = {tensor.name: tensor for tensor in onnx.load(bundle.model_path).graph.initializer}
    constants = [layer for layer in layers(network) if layer.type == trt.LayerType.CONSTANT]
    found = Counter(layer.name for layer in constants)
    for name in stored:
        if name.startswith(("model.", "lm_head.")):
            assert found[name] == 1, name
    large = [layer for layer in constants if np.prod(layer.get_output(0).shape) >= 64]
    assert {layer.get_output(0).dtype.name for layer in large} == {TYPES[dtype]}
    held = sum(int(np.prod(layer.get_output(0).shape)) for layer in large)
    assert held == sum(int(np.prod(tensor.dims)) for tensor in stored.values() if np.prod(tensor.dims) >= 64)

    found_types = summary(network)["types"]
    for each in found_types:
        if each["type"] in HEAVY and each["dtype"] not in ("INT64", "INT32", "BOOL"):
            assert each["dtype"] == TYPES[dtype], each
    assert summary(network)["cache_updates"] == 2 * bundle.config.num_hidden_layers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_stays_in_float32(dtype: str, exported: Any, rtx: Opened) -> None:
    """As in the reference: the norms' sums, the softmax, and the rope's angles; nothing else."""
    bundle = exported_as(exported, dtype, is_moe=True)
    network = parse(rtx, bundle.model_path)
    graph = onnx.load(bundle.model_path).graph
    makers = {output: node for node in graph.node for output in node.output}
    attention = next(node for node in graph.node if node.op_type == "DynamicMaskAttention")
    rope, waiting = set(), [attention.input[6], attention.input[7]]  # cos and sin
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in rope:
            rope.add(node.name)
            waiting.extend(node.input)
    wide = {node_of(layer) for layer in layers(network)
            if layer.num_outputs and layer.get_output(0).dtype.name == "FLOAT"} - {""}  # fmt: skip
    softmax = {name for name in wide if "/Softmax_" in name}
    before = {name for name in wide if "/Cast_" in name}
    norms = {name for name in wide if "RMSNormalization_" in name}
    assert len(softmax) == bundle.config.num_hidden_layers and len(before) == len(softmax)
    assert norms and wide - softmax - before - norms <= rope


def test_nodes_say_where_they_are(exported: Any, rtx: Opened) -> None:
    network = parse(rtx, exported_as(exported, "float32").model_path)
    assert len(set(network.names)) == len(network.names)
    named = {name for name in map(node_of, layers(network)) if name}
    assert named <= set(network.names)
    attentions = {name.partition("/")[0] for name in named if "/MatMul_" in name}
    assert len(attentions) == 2
    # The causal mask is the same in both layers, and computed in one.
    assert sum("/LessOrEqual_" in name for name in network.names) == 1


def model_of(nodes: list[Any], inputs: list[Any], constants: list[Any], domain: str = "") -> bytes:
    output = helper.make_tensor_value_info(nodes[-1].output[0], inputs[0].type.tensor_type.elem_type, None)
    opsets = [helper.make_opsetid("", 24), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "graph", inputs, [output], constants)
    made: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return made


def refusal_of(rtx: Opened, data: bytes, path: Path, capability: str = "80") -> DogeExportError:
    """What comes of parsing and building a file that is refused."""
    path.write_bytes(data)
    try:
        network = parse(rtx, path)
    except DogeExportError as error:
        return error
    config = network.builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.trt.ComputeCapability, f"SM{capability}"), 0)
    assert network.builder.build_serialized_network(network.definition, config) is None
    return builder_refusal(rtx.label, network.definition, network.names, network.log)


def test_refusals(rtx: Opened, tmp_path: Path) -> None:
    """Each names the node and the remedy, and shows nothing of TensorRT's sources."""
    wide = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5000])
    half = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 64])
    many = helper.make_tensor("k", TensorProto.INT64, [1], [4000])
    scale = helper.make_tensor("scale", TensorProto.FLOAT16, [], [0.5])
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    topk = helper.make_node("TopK", ["x", "k"], ["v", "i"], name="Layer_3/TopK_7")
    fused = helper.make_node("FusedMatMul", ["x", "x"], ["v"], name="MatMul_1", domain="com.microsoft")
    unique = helper.make_node("Unique", ["x"], ["v"], name="Unique_1")
    product = helper.make_node("MatMul", ["x", "x"], ["v"], name="MatMul_1")
    eight = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="QuantizeLinear_5"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["v"], name="DequantizeLinear_6"),
    ]
    path = tmp_path / "model.onnx"
    for data, words in (
        (model_of([topk], [wide], [many]), ["'Layer_3/TopK_7': K exceeds the maximum value allowed (3840).",
                                            "--max-length"]),
        (model_of([fused], [wide], [], "com.microsoft"), ["'MatMul_1' (FusedMatMul)", "no such operator"]),
        (model_of([unique], [wide], []), ["'Unique_1' (Unique)", "no such operator"]),
        (model_of([product], [wide], []), ["'MatMul_1' (MatMul)", "last dimension of input0 = 5000"]),
        (model_of(eight, [half], [scale, zero]), ["'QuantizeLinear_5", "sm80", "fp8_e4m3", "--sm"]),
    ):  # fmt: skip
        sentence = str(refusal_of(rtx, data, path))
        assert sentence.startswith(f"{rtx.label} refuses the node ")
        assert all(word in sentence for word in words), sentence
        assert "_src" not in sentence and "Error Code" not in sentence and "\n" not in sentence, sentence


def rounded(exported: Any, precision: str, dtype: str = "float16", **changes: Any) -> tuple[Path, Bundle]:
    options = {"target": "tensorrt", "max_length": 40, "dtype": dtype, "precision": precision}
    made: tuple[Path, Bundle] = exported(options, **changes)
    return made


@pytest.mark.parametrize(("precision", "stored"), [("int8-row", "INT8"), ("int4", "INT4"), ("fp8", "FP8")])
def test_rounded_weights(precision: str, stored: str, exported: Any, rtx: Opened) -> None:
    """Each integer matrix once, read by DequantizeLinear alone, which gives the file's type."""
    _, bundle = rounded(exported, precision, is_moe=True)
    network = parse(rtx, bundle.model_path)
    trt = rtx.trt
    constants = {layer.name: layer for layer in layers(network) if layer.type == trt.LayerType.CONSTANT}
    integers = {name for name, layer in constants.items() if layer.get_output(0).dtype.name == stored}
    wanted = 2 * 9 + 1  # seven matrices and two tables of experts a layer, and the tied table
    assert len(integers) == wanted
    dequantized = [layer for layer in layers(network) if layer.type == trt.LayerType.DEQUANTIZE]
    assert {layer.get_input(0).name.removesuffix("_output") for layer in dequantized} >= integers
    assert {layer.get_output(0).dtype.name for layer in dequantized} == {"HALF"}
    products = [layer for layer in layers(network) if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    assert {layer.get_output(0).dtype.name for layer in products} == {"HALF"}
    for role in ("dt_proj", "router_gate"):
        assert not any(role in name for name in integers)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float4(dtype: str, exported: Any, rtx: Opened) -> None:
    """Each matrix and its scales once; the scales dequantized first, and the numbers rounded once, by a
    cast."""
    _, bundle = rounded(exported, "nvfp4", dtype, is_moe=True)
    network = parse(rtx, bundle.model_path)
    kinds = rtx.trt.LayerType
    made = {
        layer.get_output(index).name: layer for layer in layers(network) for index in range(layer.num_outputs)
    }
    constants = [layer for layer in layers(network) if layer.type == kinds.CONSTANT]
    matrices = [layer for layer in constants if layer.get_output(0).dtype.name == "FP4"]
    assert len({layer.name for layer in matrices}) == len(matrices) == 2 * 9 + 1
    assert sum(layer.get_output(0).dtype.name == "FP8" for layer in constants) == len(matrices)
    wide = [
        layer.name
        for layer in constants
        if layer.get_output(0).dtype.name in TYPES.values() and np.prod(layer.get_output(0).shape) >= 64 * 16
    ]
    assert all("router_gate" in name for name in wide), "no matrix in floats beside them"
    readers = [
        layer
        for layer in layers(network)
        if layer.type == kinds.DEQUANTIZE and layer.get_input(0).dtype.name == "FP4"
    ]
    assert len(readers) == len(matrices)  # the tied table is dequantized for embedding and head together
    for layer in readers:
        scales = made[layer.get_input(1).name]
        assert scales.type == kinds.DEQUANTIZE and scales.get_input(0).dtype.name == "FP8"
        assert made[scales.get_input(1).name].get_output(0).dtype.name == "FLOAT"
        assert layer.get_output(0).dtype.name == "FLOAT"
    casts = {
        layer.get_input(0).name
        for layer in layers(network)
        if layer.type == kinds.CAST and layer.get_output(0).dtype.name == TYPES[dtype]
    }
    assert ({layer.get_output(0).name for layer in readers} <= casts) is (dtype != "float32")
    products = [layer for layer in layers(network) if layer.type == kinds.MATRIX_MULTIPLY]
    assert {layer.get_output(0).dtype.name for layer in products} == {TYPES[dtype]}


@pytest.mark.parametrize(("precision", "stored"), [("w8a8", "INT8"), ("w8a8-fp8", "FP8")])
def test_rounded_inputs(precision: str, stored: str, static_bundle: Any, rtx: Opened) -> None:
    """Each large product reads 8 bits on both sides: what QuantizeLinear gives, and a matrix that is there
    once."""
    _, bundle = static_bundle({"is_moe": True}, precision=precision, target="tensorrt")
    network = parse(rtx, bundle.model_path)
    kinds = rtx.trt.LayerType
    made = {
        layer.get_output(index).name: layer for layer in layers(network) for index in range(layer.num_outputs)
    }

    def before(layer: Any, place: int = 0) -> Any:
        return made.get(layer.get_input(place).name)

    matrices = []
    for layer in layers(network):
        if layer.type != kinds.MATRIX_MULTIPLY or (left := before(layer)).type != kinds.DEQUANTIZE:
            continue
        assert left.get_input(0).dtype.name == stored and before(left).type == kinds.QUANTIZE
        right = before(layer, 1)
        while right.type == kinds.SHUFFLE:
            right = before(right)
        assert right.type == kinds.DEQUANTIZE and before(right).type == kinds.CONSTANT
        assert right.get_input(0).dtype.name == stored
        matrices.append(before(right).name)
    assert len(set(matrices)) == len(matrices) == 2 * 7 + 1
    constants = [layer for layer in layers(network) if layer.type == kinds.CONSTANT]
    held = Counter(layer.name for layer in constants if layer.get_output(0).dtype.name == stored)
    large = [name for name in held if name.endswith(".weight")]
    assert len(large) == 2 * 9 + 1 and all(held[name] == 1 for name in large)
