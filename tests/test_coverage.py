"""What `verify` demands: that all that is read where the model runs is in the manifest, and as it was."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import MANIFEST, Bundle, write_manifest
from doge_export.core.bundle.names import DECODED_BY
from doge_export.core.errors import DogeExportError
from doge_export.graph.targets import TARGETS
from tests.runtime._toy import write_toy_bundle

GRAPHS = ("options", "versions", "graph", "cache", "call")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """With weights beside the graph, in the graph itself, in a graph within it, and in a function."""
    folder = write_toy_bundle(tmp_path / "b").path
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return _written(folder)


def _written(folder: Path) -> Path:
    raw = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, **{key: raw[key] for key in GRAPHS})
    return folder


def _raw(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return raw


def _unlist(folder: Path, *names: str) -> None:
    raw = _raw(folder)
    for name in names or list(raw["files"]):
        del raw["files"][name]
    (folder / MANIFEST).write_text(json.dumps(raw))


def _external(name: str) -> onnx.TensorProto:
    tensor = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, name, 0, 16)
    tensor.ClearField("raw_data")
    return tensor


def _hidden(place: str, name: str) -> onnx.ModelProto:
    """A graph whose one tensor of weights lies in `name`, somewhere in it."""
    tensor, helper = _external(name), onnx.helper
    inner = helper.make_graph([], "inner", [], [], [tensor] if place == "graph within" else [])
    node = {
        "attribute": lambda: helper.make_node("Constant", [], ["c"], value=tensor),
        "attributes": lambda: helper.make_node("X", [], ["c"], domain="x", all=[tensor]),
        "graph within": lambda: helper.make_node("X", [], ["c"], domain="x", body=inner),
        "graphs within": lambda: helper.make_node("X", [], ["c"], domain="x", bodies=[inner]),
        "initializer": lambda: helper.make_node("X", [], ["c"], domain="x"),
    }
    if place == "graphs within":
        inner.initializer.append(tensor)
    made = node["initializer" if place in ("function", "sparse") else place]()
    graph = helper.make_graph([made], "g", [], [], [tensor] if place == "initializer" else [])
    if place == "sparse":
        graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[8]))
    model = helper.make_model(graph)
    if place == "function":
        constant = helper.make_node("Constant", [], ["c"], value=tensor)
        model.functions.append(helper.make_function("x", "X", [], ["c"], [constant], []))
    return model


def test_a_whole_bundle_is_fine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Bundle.open(bundle).verify() == []
    (bundle / "README.md").write_text("mine")
    (bundle / "notes").mkdir()
    (bundle / "notes" / "a.json").write_text("mine")
    assert run(["verify", str(bundle)]) == 0
    assert "not of it, and read by nothing: README.md, notes/a.json" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "model.onnx.data", "tokenizer.json"])
def test_what_runs_must_be_listed(name: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _unlist(bundle, name)
    assert run(["verify", str(bundle)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "model.onnx"),
        ({}, "config.json"),
        ({}, "model.onnx.data"),
        ({"target": "ort-cpu"}, "decode.onnx"),
        ({"target": "tensorrt", "plugins": True}, "plugins.onnx"),
    ],
)
def test_what_is_neither_listed_nor_there_is_missed(
    options: dict[str, Any], name: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = _raw(bundle)
    raw["options"] |= options
    raw["files"].pop(name, None)
    (bundle / MANIFEST).write_text(json.dumps(raw))
    (bundle / name).unlink(missing_ok=True)
    assert run(["verify", str(bundle)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"target": "onnx"}, {"target": "tensorrt", "plugins": False}, {"target": "x"}]
)
def test_what_the_options_do_not_ask_for_is_not_missed(options: dict[str, Any], bundle: Path) -> None:
    raw = _raw(bundle)
    raw["options"] |= options
    (bundle / MANIFEST).write_text(json.dumps(raw))
    assert Bundle.open(bundle).verify() == []


def test_whose_bundles_have_a_decode_graph() -> None:
    assert [name for name, target in TARGETS.items() if target.decodes] == list(DECODED_BY)


def test_a_manifest_of_no_files_vouches_for_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _unlist(bundle)
    with (bundle / "model.onnx.data").open("ab") as file:
        file.write(b"more")
    assert run(["verify", str(bundle)]) == 2
    assert "runs model.onnx, which its manifest does not list" in capsys.readouterr().err


def test_a_key_that_comes_twice(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (bundle / MANIFEST).read_text().rstrip().removesuffix("}")
    (bundle / MANIFEST).write_text(f'{text}, "files": {{}}}}')
    assert run(["verify", str(bundle)]) == 2
    assert "has the key 'files' twice" in capsys.readouterr().err
    assert run(["generate", str(bundle), "--prompt", "a"]) == 2


@pytest.mark.parametrize(
    "name",
    ["generation_config.json", "genai_config.json", "merges.txt", "tool_use.jinja", "plugins.onnx"],
)
def test_what_would_be_read_and_is_not_listed(name: str, bundle: Path, capsys) -> None:
    (bundle / name).write_text("{}")
    assert run(["verify", str(bundle)]) == 2
    assert f"{name} is read where the model runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", ["initializer", "sparse", "attribute", "attributes", "graph within", "graphs within", "function"]
)
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other.bin", "has weights in 'other.bin', which the manifest does not list"),
        ("../b/model.onnx.data", "has weights elsewhere"),
        ("/etc/hostname", "has weights elsewhere"),
    ],
)
def test_weights_elsewhere(place: str, name: str, sentence: str, bundle: Path) -> None:
    onnx.save(_hidden(place, name), bundle / "plugins.onnx")
    if name == "other.bin":
        _written(bundle)
        (bundle / name).write_bytes(b"\0" * 16)
    else:
        _written(bundle)
    with pytest.raises(DogeExportError, match=sentence):
        Bundle.open(bundle).verify()


def test_a_graph_that_is_none(bundle: Path) -> None:
    (bundle / "plugins.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(DogeExportError, match="is not an ONNX file"):
        Bundle.open(_written(bundle)).verify()


@pytest.mark.parametrize("name", ["model.onnx.data", "config.json", "tokenizer.json"])
def test_links_out_of_the_folder(name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    with pytest.raises(DogeExportError, match=rf"{name} is a link to .*, outside the folder"):
        Bundle.open(bundle).verify()


def test_links_within_the_folder_and_the_hubs_are_fine(bundle: Path, tmp_path: Path) -> None:
    (bundle / "real").mkdir()
    shutil.move(bundle / "tokenizer.json", bundle / "real" / "t")
    (bundle / "tokenizer.json").symlink_to("real/t")
    assert Bundle.open(bundle).verify() == ["real/t"]
    hub = tmp_path / "models--a--b"
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for path in (path for path in bundle.iterdir() if path.is_file()):
        shutil.copyfile(path, hub / "blobs" / path.name.upper())
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name.upper())
    assert Bundle.open(snapshot).verify() == []


def test_links_in_a_circle(bundle: Path, tmp_path: Path, capsys) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").symlink_to("tokenizer.json")
    assert run(["verify", str(bundle)]) == 2
    (tmp_path / "circle").symlink_to("circle")
    for arguments in (
        ["verify"],
        ["generate", "--prompt", "a"],
        ["convert", "-m", "doge-tiny", "--force", "-o"],
    ):
        assert run([*arguments, str(tmp_path / "circle")]) == 2
    assert run(["export", "-o", str(tmp_path / "o"), "--dry-run", "-m", "~nobody-of-this-name/x"]) == 2
    assert "bug" not in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    with pytest.raises(DogeExportError, match="is no file any more"):
        Bundle.open(bundle).verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["files"].update({"a\0b": {"sha256": "", "bytes": 0}}),
        lambda raw: raw["files"].update({"\ud800": {"sha256": "", "bytes": 0}}),
        lambda raw: raw["files"].update({"": {"sha256": "", "bytes": 0}}),
        lambda raw: raw["files"].update({"x" * 300: {"sha256": "", "bytes": 0}}),
        lambda raw: raw["files"].update({"x": {"sha256": 1, "bytes": 0}}),
        lambda raw: raw["files"].update({"x": {"sha256": "", "bytes": -1}}),
        lambda raw: raw["files"].update({"x": {"sha256": "", "bytes": 1.5}}),
        lambda raw: raw["files"].update({"x": {"sha256": "", "bytes": float("inf")}}),
        lambda raw: raw.update(files=[]),
        lambda raw: raw.update(format=True),
        lambda raw: raw.update(call=3),
        lambda raw: raw["cache"].update(layers="2"),
        lambda raw: raw["cache"].update(layers=3),
        lambda raw: raw["cache"].update(layers=10**400),
        lambda raw: raw["cache"].update(max_length=0.5),
        lambda raw: raw["cache"].update(slots=None),
        lambda raw: raw["cache"].update(inputs="past"),
        lambda raw: raw["options"].update(dtype=3),
        lambda raw: raw["options"].update(types={"a": 3}),
        lambda raw: raw["graph"]["inputs"][0].update(shape=[-1, "a"]),
        lambda raw: raw["graph"]["inputs"].append(3),
        lambda raw: raw.update(decode={"file": "../x"}),
    ],
)
def test_a_manifest_with_other_types(change, bundle: Path) -> None:
    raw = _raw(bundle)
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DogeExportError) as caught:
        Bundle.open(bundle)
    assert caught.value.remedy


def test_certificates_vouch_for_something(bundle: Path, tmp_path: Path, capsys) -> None:
    files = {name: entry.sha256 for name, entry in Bundle.open(bundle).files.items()}
    check = {"name": "all calls", "value": 0.0, "limit": 1.0, "passed": True}
    good = {"files": files, "passed": True, "checks": [check]}
    path = tmp_path / "certificate.json"
    arguments = ["verify", str(bundle), "--certificate", str(path)]
    path.write_text(json.dumps(good))
    assert run(arguments) == 0
    missed = {**good, "checks": [check, {**check, "passed": False}]}
    for raw, code, words in [
        ({**good, "files": {}}, 2, "it is of no files"),
        ({**good, "checks": []}, 2, "it is of no checks"),
        ({**good, "passed": 1}, 2, "is no certificate"),
        ({**good, "files": [["model.onnx", ""]]}, 2, "is no certificate"),
        ({**good, "checks": [3]}, 2, "is no certificate"),
        (missed, 1, "says that the bundle passed, and that it missed: all calls"),
    ]:
        path.write_text(json.dumps(raw))
        capsys.readouterr()
        assert run(arguments) == code, raw
        assert words in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", ["validate", "quantize", "pareto", "sensitivity"])
@pytest.mark.parametrize(
    "change",
    [
        lambda options: options.pop("dtype"),
        lambda options: options.update(dtype="float7"),
        lambda options: options.update(precision="int3"),
        lambda options: options.update(target="nowhere"),
        lambda options: options.update(types={"v_proj": "int3"}),
        lambda options: options.update(rounding="up"),
    ],
)
def test_options_that_no_export_has(command: str, change, bundle: Path, tmp_path: Path, capsys) -> None:
    raw = _raw(bundle)
    change(raw["options"])
    (bundle / MANIFEST).write_text(json.dumps(raw))
    text = tmp_path / "text.txt"
    text.write_text("a text " * 500)
    rest = {
        "validate": ["--reference", "doge-tiny"],
        "quantize": ["-o", str(tmp_path / "o"), "--scheme", "int8", "--text", str(text)],
        "pareto": ["-o", str(tmp_path / "o"), "--text", str(text)],
        "sensitivity": ["--text", str(text)],
    }
    assert run([command, str(bundle), *rest[command]]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
