"""A graph that is not lowered: repeatable bytes, nothing of the machine, every weight stored once and ready
for MatMul."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from doge_export.core.config import DogeConfig
from doge_export.graph.lower import GraphFile, save_graph
from doge_export.graph.operators import DOMAIN
from doge_export.graph.passes import expose_selection, pretranspose
from doge_export.graph.targets import get_target
from doge_export.graph.targets.lowered import DECODER_LAYER
from doge_export.model import DogeForExport
from doge_export.weights import PRECISIONS
from tests.conftest import SMALL
from tests.model._reference import calls
from tests.passes._build import lowered

CONFIG = {**SMALL, "model_type": "doge", "is_moe": True, "attention_bias": True, "num_hidden_layers": 2}
SLOTS = 8  # fewer than keep_window_size


def make_model(kv_cache: str, **changes: Any) -> DogeForExport:
    torch.manual_seed(0)
    model = DogeForExport(DogeConfig.from_dict({**CONFIG, **changes}), kv_cache=kv_cache)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


def build(kv_cache: str, **changes: Any) -> tuple[DogeForExport, GraphFile]:
    model = make_model(kv_cache, **changes)
    slots = SLOTS if kv_cache == "static" else None
    return model, lowered(model, get_target("onnx"), slots=slots)


@pytest.fixture(scope="module")
def built() -> Callable[[str], tuple[DogeForExport, GraphFile]]:
    """A graph per cache kind, made once: look at it, do not change it."""
    made: dict[str, tuple[DogeForExport, GraphFile]] = {}

    def get(kv_cache: str) -> tuple[DogeForExport, GraphFile]:
        if kv_cache not in made:
            made[kv_cache] = build(kv_cache)
        return made[kv_cache]

    return get


def saved(graph: GraphFile, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_graph(graph, folder)
    return folder / "model.onnx"


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
@pytest.mark.usefixtures("traced_anew")
def test_two_builds_have_equal_bytes(kv_cache: str, built: Any, tmp_path: Path) -> None:
    first = saved(built(kv_cache)[1], tmp_path / "first")
    second = saved(build(kv_cache)[1], tmp_path / "another folder")
    for name in ("model.onnx", "model.onnx.data"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_nothing_of_the_machine_is_in_the_file(kv_cache: str, built: Any, tmp_path: Path) -> None:
    proto = ir.to_proto(built(kv_cache)[1].model)
    everything = [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.functions]
    everything += [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    everything += [node for function in proto.functions for node in function.node]
    for part in everything:
        assert not part.metadata_props and not part.doc_string
    content = saved(built(kv_cache)[1], tmp_path / "bundle").read_bytes()
    here = str(Path(__file__).parents[2]).encode()
    for trace in (here, b"/home/", b".py", b"site-packages", b"torch", b"pkg."):
        assert trace not in content, trace


def named_within(graph: onnx.GraphProto | onnx.FunctionProto) -> list[str]:
    """Everything that has a name there and in the graphs of its nodes."""
    names = []
    for node in graph.node:
        names += [name for name in node.output if name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names += [*(value.name for value in attribute.g.input), *named_within(attribute.g)]
    return names


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_nothing_is_said_twice(target: str, built: Any, tmp_path: Path) -> None:
    """The file does not describe what it stores, names no node of a body, and has an equal constant of a
    layer's body once; loaded again it knows as much as before."""
    graph = build("growing", attention_bias=False)[1] if target == "onnx" else rounded()
    for path in (saved(graph, tmp_path / target), tmp_path / target / "decode.onnx"):
        if not path.is_file():
            assert target == "onnx"
            continue
        proto = onnx.load(path, load_external_data=False)
        stored = {tensor.name for tensor in proto.graph.initializer}
        assert stored and not stored & {value.name for value in proto.graph.value_info}
        for value in ir.load(path).graph.initializers.values():
            assert value.type is not None and value.shape is not None
        for function in proto.functions:
            assert path.stem == "decode" or not any(node.name for node in function.node)
            names = [*function.input, *named_within(function)]
            assert len(set(names)) == len(names), function.name
            if function.name == DECODER_LAYER:
                constants = [node for node in function.node if node.op_type == "Constant"]
                told = [node.attribute[0].SerializeToString() for node in constants]
                assert len(told) > 1 and len(set(told)) == len(told)


def rounded() -> GraphFile:
    model = make_model("growing", attention_bias=False)
    return lowered(model, get_target("ort-cpu"), "per-token", precision=PRECISIONS["int8"])


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_the_interface_is_the_contract(kv_cache: str, built: Any) -> None:
    graph = built(kv_cache)[1].model.graph
    static = kv_cache == "static"
    parts = ("key", "value", "dt") if static else ("key", "value")
    kv: list[Any] = ["batch", 2, SLOTS if static else "past", 16]
    inputs = {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", SLOTS if static else "past+sequence"],
        "position_ids": ["batch", "sequence"],
    }
    outputs = {"logits": ["batch", "sequence", 257]}
    for layer in range(2):
        for part in parts:
            shape = kv[:3] if part == "dt" else kv
            inputs[f"past_key_values.{layer}.{part}"] = shape
            outputs[f"present.{layer}.{part}"] = ["past+sequence" if d == "past" else d for d in shape]
    if static:
        inputs["cache_position"] = ["batch"]
    for values, expected in ((graph.inputs, inputs), (graph.outputs, outputs)):
        shapes = {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in values}
        assert shapes == expected


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_names_are_counted_and_none_is_twice(kv_cache: str, built: Any) -> None:
    graph = built(kv_cache)[1].model.graph
    names = [value.name for value in (*graph.inputs, *graph.initializers.values())]
    names += [output.name for node in graph for output in node.outputs if output.name]
    assert len(names) == len(set(names))
    assert [node.name for node in graph] == [f"{node.op_type}_{at}" for at, node in enumerate(graph)]
    used = {value.name for node in graph for value in node.inputs if value is not None}
    assert set(graph.initializers) <= used
    assert {name for name in graph.initializers if "." not in name} == {
        f"constant_{at}" for at in range(sum("." not in name for name in graph.initializers))
    }


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_every_weight_is_stored_once_as_MatMul_reads_it(kv_cache: str, built: Any) -> None:
    model, graph = built(kv_cache)
    state, stored = model.state_dict(), graph.model.graph.initializers
    parameters = {name: value for name, value in stored.items() if "." in name and "embed" not in name}
    for name, value in parameters.items():
        plain = name.removesuffix(".T")
        expected = state[plain].numpy().T if name.endswith(".T") else state[plain].numpy()
        np.testing.assert_array_equal(value.const_value.numpy(), expected, err_msg=name)
        assert list(value.shape.numpy()) == list(expected.shape) == list(value.const_value.shape.numpy())
    assert {name.removesuffix(".T") for name in parameters} >= {n for n in state if "embed" not in n} - {
        name for name in state if name.endswith("rotary_embedding")
    }
    assert all(name + ".T" in stored for name in state if name.endswith("proj.weight") and "dt_" not in name)
    # The tied embedding is read as it stands and turned: once.
    tied = [name for name in stored if "embed_tokens" in name]
    assert tied == ["model.embed_tokens.weight"]


def test_the_data_file_holds_the_parameters_once(built: Any, tmp_path: Path) -> None:
    model, graph = built("growing")
    path = saved(graph, tmp_path / "bundle")
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert weights * 0.9 < (path.parent / "model.onnx.data").stat().st_size < weights * 1.2


def test_an_untied_head_is_turned() -> None:
    model, graph = build("growing", tie_word_embeddings=False, num_hidden_layers=1, is_moe=False)
    stored = graph.model.graph.initializers
    assert "lm_head.weight" not in stored
    np.testing.assert_array_equal(
        stored["lm_head.weight.T"].const_value.numpy(), model.lm_head.weight.numpy().T
    )
    assert "model.embed_tokens.weight" in stored


def test_bodies_are_attached_to_what_is_used(built: Any) -> None:
    graph = built("growing")[1].model
    used = {(DOMAIN, name) for name in ("DynamicMaskAttention", "ExpertRouting")}
    assert {identifier[:2] for identifier in graph.functions} == used
    for node in graph.graph:
        if node.domain == DOMAIN:
            function = graph.functions[(DOMAIN, node.op_type, "")]
            assert len(function.outputs) == len(node.outputs)
            assert len(function.inputs) >= len(node.inputs)
            assert set(function.attributes) <= set(node.attributes)
    _, dense = build("growing", is_moe=False, num_hidden_layers=1)
    assert [identifier[1] for identifier in dense.model.functions] == ["DynamicMaskAttention"]


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_plain_onnxruntime_says_what_the_module_says(kv_cache: str, built: Any, tmp_path: Path) -> None:
    """From the saved file; the static cache is shorter than the window here."""
    model, graph = built(kv_cache)
    run = session(saved(graph, tmp_path / "bundle"))
    call = calls((5, 1, 2), (0, 2))
    slots = SLOTS if kv_cache == "static" else 0
    cache = model.empty_cache(2, slots)
    names = [value.name for value in graph.model.graph.inputs]
    pasts = [name for name in names if name.startswith("past_")]
    for part in call.parts():
        mask = torch.nn.functional.pad(call.mask[:, : part.stop], (0, max(0, slots - part.stop)))
        position = torch.full((2,), part.start) if slots else None
        tokens, positions = call.ids[:, part], call.positions[:, part]
        feed = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        feed |= dict(zip(pasts, cache, strict=True))
        if position is not None:
            feed["cache_position"] = position
        got = run.run(None, {name: np.ascontiguousarray(tensor) for name, tensor in feed.items()})
        with torch.inference_mode():
            logits, *cache = model(tokens, mask, positions, cache, position)
        real = call.mask[:, part].bool()
        assert np.abs(got[0] - logits.numpy())[real].max() <= 1e-4


def test_expose_selection_adds_outputs_and_changes_none(built: Any, tmp_path: Path) -> None:
    path = saved(built("growing")[1], tmp_path / "bundle")
    plain = session(path)
    exposed = ir.load(path)
    masks, experts = expose_selection(exposed)
    assert (masks, experts) == (["keep.0", "keep.1"], ["experts.0", "experts.1"])
    ir.save(exposed, path.parent / "exposed.onnx")
    told = session(path.parent / "exposed.onnx")
    assert [value.name for value in told.get_outputs()][: -len(masks + experts)] == [
        value.name for value in plain.get_outputs()
    ]
    call = calls((20,), (0, 4))
    feed = {"input_ids": call.ids, "attention_mask": call.mask, "position_ids": call.positions}
    feed |= {v.name: torch.zeros(2, 2, 0, 16) for v in plain.get_inputs() if v.name.startswith("past_")}
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in feed.items()}
    before, after = plain.run(None, arrays), told.run(None, arrays)
    for first, second in zip(before, after, strict=False):
        np.testing.assert_array_equal(first, second)
    named = dict(zip([value.name for value in told.get_outputs()], after, strict=True))
    keep, chosen = named["keep.0"], named["experts.0"]
    assert keep.shape == (2, 2, 20, 20) and keep.dtype == np.bool_
    visible = np.tril(np.ones((20, 20), bool)) & call.mask.bool().numpy()[:, None, None]
    assert not (keep & ~visible).any()
    np.testing.assert_array_equal(keep.sum(-1), np.broadcast_to(np.minimum(visible.sum(-1), 12), (2, 2, 20)))
    assert chosen.shape == (40, 3) and chosen.dtype == np.int64
    assert chosen.min() >= 0 and chosen.max() < 64
    assert all(len(set(row)) == 3 for row in chosen)


def small_graph(also_plain: bool, dtype: ir.DataType) -> ir.Model:
    """x @ Transpose(w), and x2 @ w where `also_plain`."""
    array = ir.tensor(np.arange(6, dtype=dtype.numpy()).reshape(2, 3), name="w.weight")
    weight = ir.Value(name="w.weight", const_value=array, shape=ir.Shape([2, 3]), type=ir.TensorType(dtype))
    x = ir.Value(name="x", shape=ir.Shape([None, 3]), type=ir.TensorType(dtype))
    turn = ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])])
    nodes, outputs = [turn, ir.Node("", "MatMul", [x, turn.outputs[0]])], []
    outputs.append(nodes[-1].outputs[0])
    if also_plain:
        nodes.append(ir.Node("", "Identity", [weight]))
        outputs.append(nodes[-1].outputs[0])
    for at, output in enumerate(outputs):
        output.name, output.type = f"y{at}", ir.TensorType(dtype)
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[weight], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_pretranspose_turns_the_stored_weight(dtype: ir.DataType) -> None:
    model = small_graph(False, dtype)
    pretranspose(model)
    (stored,) = model.graph.initializers.values()
    assert stored.name == "w.weight.T" and stored.dtype == dtype
    assert list(stored.shape.numpy()) == [3, 2]
    expected = np.arange(6, dtype=dtype.numpy()).reshape(2, 3).T
    np.testing.assert_array_equal(stored.const_value.numpy(), expected)
    assert stored.const_value.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert [node.op_type for node in model.graph] == ["MatMul"]


def test_pretranspose_leaves_what_is_read_twice() -> None:
    model = small_graph(True, ir.DataType.FLOAT)
    pretranspose(model)
    assert list(model.graph.initializers) == ["w.weight"]
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "Identity"]
