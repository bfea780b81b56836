"""`doge-export inspect`, and the room below it."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from doge_export.cli import main
from doge_export.core.bundle import Bundle, FileEntry, hash_files
from doge_export.core.errors import DogeExportError
from doge_export.inspection.contents import inspect_bundle
from tests.runtime._toy import VOCAB, toy_model, write_toy_bundle

WEIGHTS = {
    "lm_head.weight": ("head", np.zeros((2, 3), np.float16)),
    "model.layers.0.mlp.down_embed.weight": ("experts", np.zeros((4, 5), np.float32)),
    "model.layers.0.mlp.router_gate.weight_t": ("router", np.zeros((3, 3), np.float32)),
    "model.layers.0.mlp.up_proj.weight_t": ("mlp", np.zeros((2, 2), np.float32)),
    "model.layers.0.self_attn.q_norm.weight": ("norms", np.zeros(7, np.float32)),
    "model.layers.0.input_layernorm.weight": ("norms", np.zeros(5, np.float32)),
    "model.layers.0.self_attn.A": ("attention", np.zeros(3, np.float32)),
    "model.layers.0.self_attn.q_proj.weight": ("attention", np.zeros((4, 4), np.float16)),
    "model.layers.0.input_residual": ("residuals", np.zeros(6, np.float32)),
    "constant_3": ("unnamed", np.zeros((4, 9), np.float32)),
    "constant_4": ("constants", np.zeros((1, 9), np.float32)),
    "model.norm.weight": ("norms", np.zeros(4, np.float32)),
}
SCALES = np.zeros((1, 2), np.float16)


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """The toy with weights of every role, and a node of our domain with a body, one of it in a branch."""
    model = toy_model()
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, (_, a) in WEIGHTS.items())
    model.graph.initializer.append(
        helper.make_tensor("model.layers.1.mlp.up_proj.weight", onnx.TensorProto.INT4, [3], [1, 2, 3])
    )
    model.graph.initializer.append(numpy_helper.from_array(SCALES, "model.layers.1.mlp.up_proj.scale"))
    body = [helper.make_node("Identity", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("doge", "Same", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("doge", 1))
    branch = helper.make_graph(
        [helper.make_node("Same", ["last_sum"], ["b"], domain="doge")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)],
    )
    cumsum = next(node for node in model.graph.node if node.op_type == "CumSum")
    index = list(model.graph.node).index(cumsum)
    choice = numpy_helper.from_array(np.array(True), "choice")
    model.graph.initializer.append(choice)
    added = [
        helper.make_node("Same", [cumsum.input[0]], ["last_sum"], domain="doge"),
        helper.make_node("If", ["choice"], ["chosen"], then_branch=branch, else_branch=branch),
    ]
    cumsum.input[0] = "chosen"
    for offset, node in enumerate(added):
        model.graph.node.insert(index + offset, node)
    return write_toy_bundle(tmp_path / "bundle", model=model)


def test_parameters_by_role_and_dtype(bundle):
    found = inspect_bundle(bundle)
    rows = {(row.role, row.dtype): row for row in found.parameters}
    expected: dict[tuple[str, str], list[int]] = {("embedding", "float32"): [1, VOCAB, 4 * VOCAB]}
    for role, array in (item for item in WEIGHTS.values() if item[0] != "constants"):
        row = expected.setdefault((role, str(array.dtype)), [0, 0, 0])
        row[:] = [row[0] + 1, row[1] + array.size, row[2] + array.nbytes]
    expected["mlp", "int4"] = [1, 3, 2 + SCALES.nbytes]  # scales weigh, and are no parameters
    assert {
        key: [row.tensors, row.parameters, row.bytes] for key, row in rows.items() if row.role != "constants"
    } == expected
    assert ("constants", "int64") in rows
    assert rows["constants", "float32"].parameters == 9 + 2  # and the toy's own two
    assert found.total == sum(row[1] for row in expected.values())


def test_operators_with_and_without_bodies(bundle):
    found = inspect_bundle(bundle)
    rows = {(row.domain, row.name): row for row in found.operators}
    assert (rows["doge", "Same"].count, rows["doge", "Same"].body) == (3, True)  # two of them in branches
    assert rows["ai.onnx", "If"].count == 1
    assert not rows["ai.onnx", "If"].body
    assert ("ai.onnx", "Identity") not in rows  # the body is no part of the graph
    assert found.opsets == {"ai.onnx": 21, "doge": 1}


def test_a_node_without_body_is_shown_without_loading(tmp_path, capsys):
    model = toy_model()
    next(node for node in model.graph.node if node.op_type == "CumSum").domain = "doge"
    model.opset_import.append(helper.make_opsetid("doge", 1))
    path = str(write_toy_bundle(tmp_path, model=model).path)
    assert main(["inspect", path]) == 2
    assert "cannot load" in capsys.readouterr().err
    assert main(["inspect", path, "--no-load", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["loaded"] is False and data["onnxruntime"] is None
    assert data["operators"][0] == {
        "domain": "doge",
        "name": "CumSum",
        "count": 1,
        "body": False,
        "kernels": None,
    }


def test_the_library_and_what_runs_on_its_kernels(bundle, capsys):
    from doge_export import plugin_library

    assert main(["inspect", str(bundle.path), "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["library"] == str(plugin_library())
    # the library knows no operator of that name, so that all three run on the body
    assert [row["kernels"] for row in data["operators"] if row["name"] == "Same"] == [0]
    assert {row["kernels"] for row in data["operators"] if row["domain"] != "doge"} == {None}
    assert main(["inspect", str(bundle.path)]) == 0
    out = capsys.readouterr().out
    assert str(plugin_library()) in out and "bodies" in out


LAYERS = 2


def test_both_graphs_of_a_bundle_run_on_kernels(exported, capsys):
    _, made = exported()
    assert main(["inspect", str(made.path), "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    for key, expected in (
        ("operators", {"RotaryAngles": 1, "DecoderLayer": LAYERS, "LMHead": 1}),
        ("decode_operators", {"DecodeTokens": 1}),
    ):
        ours = {row["name"]: row for row in data[key] if row["domain"] == "doge"}
        found = {name: (row["count"], row["kernels"], row["body"]) for name, row in ours.items()}
        assert found == {name: (count, count, True) for name, count in expected.items()}
    assert main(["inspect", str(made.path)]) == 0
    out = capsys.readouterr().out
    assert "custom operators of decode.onnx" in out and "kernels" in out and "bodies" not in out


def test_without_the_library_everything_runs_on_bodies(exported, capsys, monkeypatch, tmp_path):
    _, made = exported()
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", tmp_path / "none.so")
    assert main(["inspect", str(made.path), "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = [row for row in (*data["operators"], *data["decode_operators"]) if row["domain"] == "doge"]
    assert data["library"] is None
    assert [row["kernels"] for row in rows] == [0] * 4
    assert main(["inspect", str(made.path)]) == 0
    out = capsys.readouterr().out
    assert "missing: bodies run" in out and "bodies" in out


def test_json(bundle, capsys):
    import onnxruntime

    assert main(["inspect", str(bundle.path), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == ""
    assert data["onnxruntime"] == onnxruntime.__version__ and data["loaded"]
    assert data["graph"]["inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": ["batch", "sequence"],
    }
    assert data["cache"]["kind"] == "growing"
    assert data["options"]["target"] == "onnx"
    assert {file["name"] for file in data["files"]} == set(bundle.manifest.files)
    assert all(file["verified"] for file in data["files"])
    assert data["parameters"]["total"] == sum(
        row["parameters"] for row in data["parameters"]["by_role"] if row["role"] != "constants"
    )


def test_the_table_names_everything(bundle, capsys):
    assert main(["inspect", str(bundle.path)]) == 0
    out = capsys.readouterr().out
    for text in (
        "past_key_values.N.key",
        "[batch, 1, past, 2]",
        "growing, 2 layers of 1 x 2, float32",
        "embedding",
        "Same",
        "CumSum",
        bundle.manifest.files["model.onnx"].sha256,
        str(bundle.path),
    ):
        assert text in out


def test_json_to_a_file_goes_with_the_table(bundle, capsys, tmp_path):
    assert main(["inspect", str(bundle.path), "--no-load", "--json", str(tmp_path / "i.json")]) == 0
    assert "not tried" in capsys.readouterr().out
    assert json.loads((tmp_path / "i.json").read_text())["format"] == 1


def test_a_changed_file_is_found(bundle, capsys):
    path = bundle.path / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert main(["inspect", str(bundle.path), "--json", "-"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "tokenizer.json was changed" in err


def test_a_graph_that_is_no_onnx_file(tmp_path):
    bundle = write_toy_bundle(tmp_path)
    entry = bundle.manifest.files["model.onnx"]
    bundle.model_path.write_bytes(b"\xff" * entry.bytes)
    with pytest.raises(DogeExportError, match="was changed"):
        inspect_bundle(bundle)
    written = hash_files(bundle.path)["model.onnx"]  # as if it had been written like this
    bundle.manifest.files["model.onnx"] = FileEntry(**written)
    with pytest.raises(DogeExportError, match="not an ONNX file"):
        inspect_bundle(bundle)


def test_torch_is_not_imported(bundle):
    code = (
        "import sys; from doge_export.cli import main\n"
        f"assert main(['inspect', {str(bundle.path)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
