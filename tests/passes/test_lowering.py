"""Lowered graphs: whole layers as nodes, the same numbers, weights once, and a second graph for decoding."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from doge_export.graph.lower import GraphFile, save_graph
from doge_export.graph.operators import DOMAIN
from doge_export.graph.passes import expose_selection
from doge_export.graph.targets import get_target
from doge_export.graph.targets.lowered import (
    LAYER_ATTRIBUTES,
    LAYER_ROLES,
    LM_HEAD_ROLES,
    ROTARY_ANGLES_ROLES,
    TOKEN_EMBEDDING_ROLES,
)
from doge_export.model import DogeForExport
from doge_export.weights import FULL, Precision, nearest, stored_format
from tests._precision import precision as mixed
from tests.model._reference import Calls, calls
from tests.passes._build import lowered
from tests.passes.test_built_graph import SLOTS, make_model, session

LOWERED = get_target("ort-cpu")
PLAIN = dataclasses.replace(LOWERED, kernels=frozenset())
ROLES = {
    "DecoderLayer": LAYER_ROLES,
    "LMHead": LM_HEAD_ROLES,
    "RotaryAngles": ROTARY_ANGLES_ROLES,
    "TokenEmbedding": TOKEN_EMBEDDING_ROLES,
}

CASES: dict[str, dict[str, Any]] = {
    "experts, biases": {},
    "dense, untied": {"is_moe": False, "attention_bias": False, "tie_word_embeddings": False},
    "sliding, gelu, mlp bias": {"is_moe": False, "sliding_window": 5, "hidden_act": "gelu", "mlp_bias": True},
    "heads 4/4, relu2": {"is_moe": False, "num_key_value_heads": 4, "hidden_act": "relu2"},
}


#: Every pair of neighbours differs, in type, block, or whether it is rounded at all.
MIXED = mixed(
    "int4",
    {
        "v_proj": "int8:32",
        "embed_tokens": "int8:16",
        "layers.1": "int8",
        "layers.1.o_proj": "int4:64",
        "layers.0.k_proj": "fp32",
        "dt_proj": "int8:16",
    },
)
#: float16 wherever it may be, beside integers and floats.
HALVED = mixed(
    "int8",
    {
        **dict.fromkeys(("embed_tokens", "router_gate", "dt_proj", "up_embed", "v_proj"), "fp16"),
        "layers.0": "fp16",
        "layers.1.o_proj": "fp32",
    },
)


def named(precision: Precision | str) -> Precision:
    return mixed(precision) if isinstance(precision, str) else precision


def build(model: DogeForExport, target: Any = LOWERED, precision: Precision | str = "fp32") -> GraphFile:
    slots = SLOTS if model.kv_cache == "static" else None
    return lowered(model, target, "reference", slots, named(precision))


def saved(graph: GraphFile, folder: Path) -> Path:
    folder.mkdir()
    save_graph(graph, folder)
    return folder


def run(path: Path, model: DogeForExport, call: Calls) -> list[list[np.ndarray]]:
    """All outputs of every call, from an empty cache."""
    loaded = session(path)
    inputs = {value.name: value.shape for value in loaded.get_inputs()}
    # decode.onnx has buffers in the place of a growing cache, of any number of slots or as many as are kept.
    bounded = "past_key_values.position" in inputs
    slots = 0 if "cache_position" not in inputs else SLOTS if model.kv_cache == "static" else 20
    slots = model.config.keep_window_size if bounded else slots
    names = [name for name in inputs if name.startswith("past_")]
    parts = [value.name.startswith("present") for value in loaded.get_outputs()].index(True)
    dtype = model.empty_cache(1)[0].numpy().dtype
    cache: list[Any] = []
    for name in names:
        shape = [len(call.ids) if n == "batch" else slots if isinstance(n, str) else n for n in inputs[name]]
        cache.append(np.full(shape, -1) if name.endswith("position") else np.zeros(shape, dtype))
    results = []
    for part in call.parts():
        mask = torch.nn.functional.pad(call.mask[:, : part.stop], (0, max(0, slots - part.stop)))
        mask = call.mask[:, part] if bounded else mask
        feed = {
            "input_ids": call.ids[:, part],
            "attention_mask": mask,
            "position_ids": call.positions[:, part],
        }
        if slots and not bounded:
            feed["cache_position"] = torch.full((len(call.ids),), part.start)
        if "rope_length" in inputs:
            feed["rope_length"] = torch.tensor(0)
        arrays = {name: np.asarray(tensor, order="C") for name, tensor in feed.items()}
        if "steps" in inputs:
            arrays["steps"] = np.array(1)
        results.append(loaded.run(None, {**arrays, **dict(zip(names, cache, strict=True))}))
        cache = results[-1][parts : parts + len(names)]
    return results


def schedule(model: DogeForExport) -> Calls:
    return calls((5, 1, 2), (0, 2)) if model.kv_cache == "static" else calls((14, 1, 1, 3), (0, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[DogeForExport, Path]]:
    """model and folder of the first case, one a precision and kind of cache."""
    made: dict[tuple[Precision | str, str, bool], tuple[DogeForExport, Path]] = {}

    def get(
        precision: Precision | str, kv_cache: str = "growing", is_moe: bool = True
    ) -> tuple[DogeForExport, Path]:
        key = precision, kv_cache, is_moe
        if key not in made:
            model = make_model(kv_cache, is_moe=is_moe)
            folder = tmp_path_factory.mktemp("lowered") / "bundle"
            made[key] = model, saved(build(model, LOWERED, precision), folder)
        return made[key]

    return get


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
@pytest.mark.parametrize("case", CASES)
def test_a_lowered_graph_says_what_the_graph_says(case: str, kv_cache: str, tmp_path: Path) -> None:
    model = make_model(kv_cache, **CASES[case])
    plain, lowered = (
        run(saved(build(model, target), tmp_path / name) / "model.onnx", model, schedule(model))
        for name, target in (("plain", PLAIN), ("lowered", LOWERED))
    )
    for first, second in zip(plain, lowered, strict=True):
        for expected, got in zip(first, second, strict=True):
            np.testing.assert_array_equal(expected, got)


def half(model: DogeForExport) -> DogeForExport:
    """As `load_model` makes it: the rope stays float32."""
    model.half().rotary_embedding = type(model.rotary_embedding)(model.config)
    return model


def test_a_lowered_float16_graph_says_what_the_graph_says(tmp_path: Path) -> None:
    model = half(make_model("growing"))
    plain, lowered = (
        run(saved(build(model, target), tmp_path / name) / "model.onnx", model, schedule(model))
        for name, target in (("plain", PLAIN), ("lowered", LOWERED))
    )
    for first, second in zip(plain, lowered, strict=True):
        assert first[0].dtype == np.float16
        assert np.abs(first[0].astype(np.float32) - second[0]).max() <= 1e-2 * first[0].std()


def rounded(model: DogeForExport, precision: Precision | str) -> DogeForExport:
    """The module with the weights that the file holds."""
    tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        form = stored_format(name, tuple(parameter.shape), named(precision), tied)
        if form != FULL:
            parameter.copy_(torch.from_numpy(nearest(parameter.float().numpy(), form)))
    return model


@pytest.mark.parametrize("precision", ["int8", "int4", "int8-head4", MIXED, HALVED])
@pytest.mark.parametrize(
    "changes",
    [{}, {"is_moe": False, "tie_word_embeddings": False, "intermediate_size": 44}],
    ids=["experts, tied", "dense, untied, no int4 block"],
)
def test_a_quantized_graph_computes_with_the_rounded_weights(
    precision: Precision | str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model("growing", **changes)
    check_rounded(LOWERED, model, precision, tmp_path)


def test_another_runtime_takes_float16_matrices(tmp_path: Path) -> None:
    precision = dataclasses.replace(HALVED, layers=FULL, embedding=FULL, head=FULL)
    check_rounded(get_target("onnx"), make_model("growing"), precision, tmp_path)


def check_rounded(target: Any, model: DogeForExport, precision: Precision | str, tmp_path: Path) -> None:
    folder = saved(build(model, target, precision), tmp_path / "bundle")
    call = schedule(model)
    got = run(folder / "model.onnx", model, call)
    reference, cache = rounded(model, precision), model.empty_cache(2)
    for part, outputs in zip(call.parts(), got, strict=True):
        with torch.inference_mode():
            logits, *cache = reference(
                call.ids[:, part], call.mask[:, : part.stop], call.positions[:, part], cache, None
            )
        real = call.mask[:, part].bool()
        assert np.abs(outputs[0] - logits.numpy())[real].max() <= 1e-4


def test_layers_that_store_alike_share_a_body(tmp_path: Path) -> None:
    model = make_model("growing", is_moe=False, num_hidden_layers=3)
    precision = mixed("int8", {"layers.1.v_proj": "fp32", "layers.2": "int4:16"})
    graph = build(model, LOWERED, precision).model
    layers = [node for node in graph.graph if node.op_type == "DecoderLayer"]
    assert [node.overload for node in layers] == ["", "1", ""]
    assert {each.overload for each in graph.functions.values() if each.name == "DecoderLayer"} == {"", "1"}


def test_a_quantized_float16_graph_rounds_once_more(tmp_path: Path) -> None:
    model = half(make_model("growing", is_moe=False))
    folder = saved(build(model, LOWERED, "int8"), tmp_path / "bundle")
    call = calls((6,))
    got = run(folder / "model.onnx", model, call)[0][0]
    wide = rounded(model, "int8").float()
    with torch.inference_mode():
        logits = wide(call.ids, call.mask, call.positions, wide.empty_cache(1), None)[0].numpy()
    assert np.abs(got - logits).max() <= 2e-2 * logits.std()


@pytest.mark.parametrize(("precision", "kv_cache"), [("fp32", "growing"), ("int8", "static")])
def test_every_lowered_node_says_what_its_inputs_are(precision: str, kv_cache: str, bundle: Any) -> None:
    model, folder = bundle(precision, kv_cache)
    found = ir.load(folder / "model.onnx")
    nodes = [node for node in found.graph if node.domain == DOMAIN]
    embedding = ["TokenEmbedding"] if precision == "int8" else []
    layers = ["DecoderLayer", "DecoderLayer"]
    assert [node.op_type for node in nodes] == [*embedding, "RotaryAngles", *layers, "LMHead"]
    for node in nodes:
        roles = node.attributes["inputs"].as_string().split(",")
        assert len(roles) == len(node.inputs) == len(set(roles))
        assert roles == [role for role in ROLES[node.op_type] if role in roles], "in the order of the table"
        function = found.functions[DOMAIN, node.op_type, ""]
        assert [value.name for value in function.inputs] == roles
        assert len(function.outputs) == len(node.outputs)
        assert set(function.attributes) == set(node.attributes)
        inputs = dict(zip(roles, node.inputs, strict=True))
        for role, value in inputs.items():
            if value.is_initializer():
                tables = ("table", "table.scale", "inv_freq", *LM_HEAD_ROLES)
                assert f".{role.split('.')[0]}." in f".{value.name}." or role in tables
            if role.endswith(".scale"):
                matrix = inputs[role.removesuffix(".scale")]
                assert value.dtype == ir.DataType.FLOAT16 and matrix.dtype == ir.DataType.INT8
                assert matrix.shape[1] % value.shape[1] == 0 and matrix.shape[0] == value.shape[0]
        if node.op_type == "DecoderLayer":
            assert set(node.attributes) == {"inputs", *LAYER_ATTRIBUTES}
            layer = model.model.layers[int(inputs["A"].name.split(".")[2])]
            for role, weight in (
                ("A", layer.self_attn.A),
                ("q_norm", layer.self_attn.q_norm.weight),
                ("dt_proj.bias", layer.self_attn.dt_proj.bias),
                ("router_gate", layer.mlp.router_gate.weight),
                ("input_residual", layer.input_residual),
            ):
                np.testing.assert_array_equal(inputs[role].const_value.numpy(), weight.numpy())
            values = {name: node.attributes[name].value for name in LAYER_ATTRIBUTES}
            assert values == {
                "num_heads": 4,
                "num_kv_heads": 2,
                "keep_window_size": 12,
                "sliding_window": 0,
                "scale": pytest.approx(0.25),
                "epsilon": pytest.approx(1e-6),
                "activation": "silu",
                "num_keys": 8,
                "num_experts_per_tok": 3,
                "per_token": 0,
                "norm_topk_prob": 0,
            }


def test_equal_weights_stay_each_in_its_place(tmp_path: Path) -> None:
    """A fresh model's norms and residuals are all ones; merged, they would lose their names."""
    model = make_model("growing", is_moe=False)
    for name, parameter in model.named_parameters():
        if "norm" in name or "residual" in name:
            parameter.fill_(1)
    graph = build(model).model.graph
    assert {name for name in graph.initializers if name.startswith("model.")} == {
        name for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("precision", "kv_cache"), [("fp32", "growing"), ("int4", "static"), ("int8-head4", "growing")]
)
def test_two_lowered_builds_have_equal_bytes(
    precision: str, kv_cache: str, bundle: Any, tmp_path: Path
) -> None:
    _, folder = bundle(precision, kv_cache)
    again = saved(build(make_model(kv_cache), LOWERED, precision), tmp_path / "another folder")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["decode.onnx", "model.onnx", "model.onnx.data"]
    traces = (str(Path(__file__).parents[2]).encode(), str(folder).encode(), b".py", b"site-packages")
    for name in names:
        content = (folder / name).read_bytes()
        assert content == (again / name).read_bytes(), name
        assert name.endswith("data") or not [trace for trace in traces if trace in content]


@pytest.mark.parametrize("is_moe", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", MIXED, HALVED])
def test_the_decode_graph_gives_the_best_tokens(
    precision: Precision | str, is_moe: bool, bundle: Any
) -> None:
    """Of mixing experts with a static cache, else with a bounded one."""
    model, folder = bundle(precision, is_moe=is_moe)
    call = schedule(model)
    full, best = (run(folder / name, model, call) for name in ("model.onnx", "decode.onnx"))
    for (logits, *presents), (ids, values, *joined) in zip(full, best, strict=True):
        ids, values = ids[:, 0], values[:, 0]
        expected = np.argsort(-logits[:, -1], axis=-1, kind="stable")[:, :64]
        assert ids.dtype == np.int64 and values.dtype == np.float32 and ids.shape == (2, 64)
        np.testing.assert_allclose(values, np.take_along_axis(logits[:, -1], expected, -1), atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(logits[:, -1], ids, -1), values, atol=1e-5)
        assert (ids[:, 0] == expected[:, 0]).all()
        assert (ids == expected).mean() > 0.95  # the head of one row may round unlike the head of many
        keys, weights, *rest = joined  # of what is left, model.onnx has nothing
        others = [(part[layer], layer) for layer in range(len(keys)) for part in (keys, weights)]
        if model.config.is_moe:
            for first, (second, _) in zip(presents, others, strict=True):
                np.testing.assert_allclose(second[:, :, : first.shape[2]], first, atol=1e-5)
            continue
        positions = rest[1]
        places = positions + np.array([0, 4])[:, None, None]  # of a row that is padded
        for first, (second, layer) in zip(presents, others, strict=True):
            for row, head in np.ndindex(*second.shape[:2]):
                held = positions[layer, row, head] >= 0
                assert held.sum() == min(
                    model.config.keep_window_size, (positions[layer, row] >= 0).sum(-1).max()
                )
                cached = first[row, head, places[layer, row, head, held]]
                np.testing.assert_allclose(second[row, head, held], cached, atol=1e-5)


def test_equal_tokens_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    model = make_model("growing", is_moe=False, tie_word_embeddings=False, vocab_size=40)
    model.lm_head.weight[:] = model.lm_head.weight[0]
    folder = saved(build(model, LOWERED, "int8"), tmp_path / "bundle")
    ids, values, *_ = run(folder / "decode.onnx", model, calls((3,), vocab=40))[0]
    assert ids.tolist() == [[list(range(40))]], "no more than there are"
    assert len(set(values[0, 0])) == 1


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_both_graphs_read_one_file(precision: str, bundle: Any) -> None:
    _, folder = bundle(precision)
    stored = []
    for name in ("model.onnx", "decode.onnx"):
        graph = onnx.load(folder / name, load_external_data=False).graph
        places = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in graph.initializer
            if tensor.external_data
        }
        assert {place["location"] for place in places.values()} == {"model.onnx.data"}
        for tensor in graph.initializer:
            if tensor.external_data:
                size = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}.get(tensor.data_type, 1)
                assert int(places[tensor.name].get("offset", 0)) % size == 0
        inside = sum(len(tensor.raw_data) for tensor in graph.initializer if not tensor.external_data)
        assert all(len(tensor.raw_data) <= 1024 for tensor in graph.initializer)
        stored.append((places, inside))
    assert stored[0] == stored[1]


def test_a_tied_table_is_stored_once(bundle: Any) -> None:
    _, folder = bundle("int8-head4")
    graph = ir.load(folder / "model.onnx").graph
    stored = graph.initializers.items()
    tables = {name: value.dtype.name for name, value in stored if "head" in name or "tokens" in name}
    assert tables == {"model.embed_tokens.weight": "INT4", "model.embed_tokens.scale": "FLOAT16"}
    assert len(graph.initializers["model.embed_tokens.weight"].uses()) == 2


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
def test_a_lowered_graph_tells_its_selection(kv_cache: str, bundle: Any, tmp_path: Path) -> None:
    model, folder = bundle("int8", kv_cache)
    exposed = ir.load(folder / "model.onnx")
    assert expose_selection(exposed) == (["keep.0", "keep.1"], ["experts.0", "experts.1"])
    ir.save(exposed, folder / "exposed.onnx")
    try:
        told = run(folder / "exposed.onnx", model, schedule(model))
    finally:
        (folder / "exposed.onnx").unlink()
    for before, after in zip(run(folder / "model.onnx", model, schedule(model)), told, strict=True):
        for first, second in zip(before, after, strict=False):
            np.testing.assert_array_equal(first, second)
        keep, experts = after[-4:-2]
        assert keep.dtype == np.bool_ and keep.ndim == 4
        assert experts.dtype == np.int64 and experts.shape[1] == 3


def test_the_body_follows_the_attributes(bundle: Any) -> None:
    """A kernel reads them; without one, so does what stands in its place."""
    model, folder = bundle("fp32")
    changed = ir.load(folder / "model.onnx")
    for node in changed.graph:
        if node.op_type == "DecoderLayer":
            node.attributes["keep_window_size"] = ir.AttrInt64("keep_window_size", 3)
    ir.save(changed, folder / "changed.onnx")
    try:
        got = run(folder / "changed.onnx", model, schedule(model))
    finally:
        (folder / "changed.onnx").unlink()
    wide = run(folder / "model.onnx", model, schedule(model))
    assert np.abs(wide[0][0] - got[0][0]).max() > 1e-3
    narrow, call = make_model("growing", keep_window_size=3), schedule(model)
    first = next(iter(call.parts()))
    ids, mask, positions = (tensor[:, first] for tensor in (call.ids, call.mask, call.positions))
    with torch.inference_mode():
        logits = narrow(ids, mask, positions, narrow.empty_cache(2), None)[0]
    assert np.abs(logits.numpy() - got[0][0])[mask.bool()].max() <= 1e-4


def test_onnx_takes_the_file_for_valid(bundle: Any) -> None:
    for precision in ("fp32", "int4"):
        _, folder = bundle(precision)
        for name in ("model.onnx", "decode.onnx"):
            onnx.checker.check_model(folder / name)
            ort.InferenceSession(folder / name)
