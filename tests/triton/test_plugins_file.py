"""`export --plugins`: the file, node by node, at TensorRT's registry and in the interpreter."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from doge_export.cli.app import run
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.graph.passes.mix_experts import mix_experts
from doge_export.triton.table import NAMESPACE, PLUGINS
from tests.triton._run import run_model

SLOTS = 20
WINDOW = 12
_TYPES = {int: onnx.AttributeProto.INT, float: onnx.AttributeProto.FLOAT, str: onnx.AttributeProto.STRING}


def export(exported: Callable[..., tuple[Any, Any]], dtype: str = "float32", **more: Any) -> Bundle:
    options = {"target": "tensorrt", "max_length": SLOTS, "plugins": True, "dtype": dtype, **more}
    bundle: Bundle = exported(options, is_moe=True)[1]
    return bundle


@pytest.mark.parametrize("precision", ["fp32", "int8-row"])
def test_walk(precision: str, exported: Callable[..., tuple[Any, Any]]) -> None:
    """Every plugin with the inputs, outputs and attributes that it is registered with."""
    bundle = export(exported, "float16", precision=precision)
    assert bundle.plugins_path is not None and "plugins.onnx" in bundle.manifest.files
    bundle.verify()
    model, plain = (
        onnx.load(path, load_external_data=False) for path in (bundle.plugins_path, bundle.model_path)
    )
    assert not model.functions
    ours = [node for node in model.graph.node if node.domain]
    assert {node.domain for node in ours} == {NAMESPACE}
    layers = bundle.config.num_hidden_layers
    names = ["StoreKeys", "MaskThreshold", "SplitAttention", "CombineSplits", "ExpertRouting"]
    # Of tables in fewer bits the mixture stays what it was.
    wanted = [*names, *(["ExpertMix"] if precision == "fp32" else [])]
    assert Counter(node.op_type for node in ours) == dict.fromkeys(wanted, layers)
    for node in ours:
        plugin = PLUGINS[node.op_type]
        assert len(node.input) == len(plugin.inputs) and all(node.input)
        assert len(node.output) == len(plugin.outputs)
        attributes = {attribute.name: attribute for attribute in node.attribute}
        marks = {key: onnx.helper.get_attribute_value(attributes.pop(key)) for key in (
            "plugin_namespace", "plugin_version", "aot")}  # fmt: skip
        assert marks == {"plugin_namespace": b"doge", "plugin_version": b"1", "aot": 1}
        found = {
            name: attribute.type for name, attribute in attributes.items() if not attribute.ref_attr_name
        }
        assert found == {name: _TYPES[of] for name, of in plugin.attributes.items()}, node.op_type
    # The interface and the weights are those of the other file, which is read where it lies.
    for side in ("input", "output"):
        assert [value.SerializeToString() for value in getattr(model.graph, side)] == [
            value.SerializeToString() for value in getattr(plain.graph, side)
        ]
    stored = {tensor.name: tensor for tensor in plain.graph.initializer if tensor.external_data}
    for tensor in model.graph.initializer:
        if tensor.external_data:
            assert tensor == stored[tensor.name]
    assert not any(node.op_type in ("TopK", "TensorScatter") for node in model.graph.node)


def test_the_file_runs(exported: Callable[..., tuple[Any, Any]]) -> None:
    """Past the window, and one more token: each node is given to TensorRT's registry, which says types and
    shapes, and its kernel to the interpreter. The logits are those of the file without plugins."""
    bundle = export(exported)
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    assert bundle.plugins_path is not None
    model = ir.from_proto(onnx.load(bundle.plugins_path))
    rng, cached = torch.Generator().manual_seed(0), {}
    for at, length in ((0, WINDOW + 2), (WINDOW + 2, 1)):
        feed = {
            "input_ids": torch.randint(3, 250, (1, length), generator=rng),
            "attention_mask": torch.ones(1, SLOTS, dtype=torch.int64),
            "position_ids": torch.arange(at, at + length)[None],
            "cache_position": torch.tensor([at]),
        }
        for value in session.get_inputs():
            if value.name.startswith("past_key_values"):
                shape = [1 if i == 0 else size for i, size in enumerate(value.shape)]
                feed[value.name] = cached.get(value.name, torch.zeros(shape))
        wanted = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        got = run_model(model, dict(feed)).outputs
        names = [output.name for output in session.get_outputs()]
        np.testing.assert_allclose(got["logits"], wanted[names.index("logits")], rtol=1e-4, atol=2e-5)
        for name, array in zip(names, wanted, strict=True):
            cached[name.replace("present", "past_key_values")] = torch.from_numpy(array)


def test_another_activation(exported: Callable[..., tuple[Any, Any]]) -> None:
    """The mixture is found whatever stands between the products."""
    options = {"target": "tensorrt", "max_length": SLOTS}
    bundle = exported(options, is_moe=True, hidden_act="gelu_new", num_hidden_layers=1)[1]
    model = ir.load(bundle.model_path)
    mix_experts(model, "gelu_new")
    (node,) = (node for node in model.graph if node.op_type == "ExpertMix")
    assert node.attributes["activation"].as_string() == "gelu_new"
    down, up = (str(value.name) for value in node.inputs[3:] if value is not None)
    assert down.endswith("down_embed.weight") and up.endswith("up_embed.weight")
    left = [node for node in model.graph if node.op_type == "Gather"]
    assert not any("_embed" in str(node.inputs[0]) for node in left)


def test_who_takes_plugins(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DogeExportError, match=r"--target ort-cpu takes no plugins of TensorRT. Leave --plugins"
    ):
        ExportOptions.resolve(plugins=True)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('target = "tensorrt"\nplugins = true\n')
    assert ExportOptions.resolve(recipe).plugins
    assert ExportOptions.resolve(recipe, plugins=None).to_dict()["plugins"] is True
    assert "plugins" not in ExportOptions.resolve().to_dict()
    recipe.write_text('plugins = "yes"\n')
    with pytest.raises(DogeExportError, match="sets plugins to 'yes', which is no true or false"):
        ExportOptions.resolve(recipe)
    arguments = [
        "export",
        "-m",
        "doge-tiny",
        "-o",
        str(tmp_path / "out"),
        "--target",
        "tensorrt",
        "--plugins",
    ]
    assert run([*arguments, "--dry-run"]) == 0
    assert "plugins = True" in capsys.readouterr().out
