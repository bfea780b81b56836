"""Model repositories: what lies in them, the configuration against the graph, and what is refused."""

import json
import os
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from doge_export.cli import main
from doge_export.core.bundle import ENGINE, Bundle, hash_files
from doge_export.core.errors import DogeExportError
from doge_export.deploy import deploy_triton
from doge_export.deploy.pbtxt import Word, pbtxt
from doge_export.runtime import open_folder
from doge_export.runtime.tensorrt.engine_folder import write_engine_folder
from doge_export.runtime.tensorrt.kinds import KINDS, Opened
from doge_export.runtime.tensorrt.profiles import profiles
from tests.deploy._triton import SERVER, model_config_pb2, new_environment
from tests.runtime._toy import write_toy_bundle

ROUNDED = {"target": "tensorrt", "max_length": 40, "dtype": "float16", "precision": "int8-row"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle", "growing")


@pytest.fixture(scope="module")
def engines(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of TensorRT -> the folder of an engine. What build-engine writes, but for the engine itself: full
    TensorRT cannot be installed without a GPU, and its bytes are not looked at here."""
    bundle = exported(ROUNDED)[1]
    folders = {}
    for name, kind in KINDS.items():
        folders[name] = folder = tmp_path_factory.mktemp(name)
        (folder / ENGINE).write_bytes(b"no engine")
        opened = Opened(kind, SimpleNamespace(__version__="11.4"))
        write_engine_folder(folder, bundle, opened, (), profiles(bundle.manifest, 1))
    return folders


def parsed(folder: Path, name: str) -> Any:
    """config.pbtxt, read by the parser and the message definition that a client of Triton has."""
    text = (folder / name / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == name and config.max_batch_size == 0
    return config


def tensors(values: Any) -> dict[str, tuple[str, list[int]]]:
    names = model_config_pb2.DataType
    return {value.name: (names.Name(value.data_type), list(value.dims)) for value in values}


def of_graph(values: Any) -> dict[str, tuple[str, list[int]]]:
    types = {1: "TYPE_FP32", 7: "TYPE_INT64", 10: "TYPE_FP16", 16: "TYPE_BF16"}
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        dims = [each.dim_value if each.HasField("dim_value") else -1 for each in tensor.shape.dim]
        found[value.name] = (types[tensor.elem_type], dims or [1])
    return found


def test_text_format() -> None:
    config = {
        "name": 'a "b" \\ é \n',
        "input": [{"name": "x", "data_type": Word("TYPE_BF16"), "dims": [-1, 4], "optional": True}],
        "model_operations": {"op_library_filename": ["a", "b"]},
    }
    read = text_format.Parse(pbtxt(config), model_config_pb2.ModelConfig())
    assert read.name == config["name"] and list(read.model_operations.op_library_filename) == ["a", "b"]
    assert list(read.input[0].dims) == [-1, 4] and read.input[0].optional


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"kv_cache": "bounded"}, True),
        ({"target": "onnx", "dtype": "bfloat16", "kv_cache": "static"}, False),
    ],
)
def test_onnxruntime_backend(
    options: dict[str, Any],
    kernels: bool,
    exported: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = exported(options)[1]
    made = deploy_triton(bundle.path, tmp_path / "r", backend="onnxruntime", instances=3, name="m", threads=2)
    config = parsed(made.path, "m")
    graph = onnx.load(bundle.model_path, load_external_data=False).graph
    assert tensors(config.input) == of_graph(graph.input)
    assert tensors(config.output) == of_graph(graph.output)
    scalars = [value.name for value in graph.input if not value.type.tensor_type.shape.dim]
    assert scalars == (["rope_length"] if kernels else [])
    group = config.instance_group[0]
    assert config.backend == "onnxruntime" and group.count == 3
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert {path.name for path in (made.path / "m" / "1").iterdir()} - {"libdoge_export.so"} == {
        path.name for path in bundle.path.glob("model.onnx*")
    }
    libraries = list(config.model_operations.op_library_filename)
    assert bool(libraries) == kernels == (group.kind == group.KIND_CPU)
    since = "1.24, which Triton has from 26.02" if options["kv_cache"] == "static" else "1.23, which"
    assert f"It needs onnxruntime {since}" in (made.path / "README.md").read_text()
    if options.get("dtype") == "bfloat16":
        return  # nothing for the CPU
    monkeypatch.chdir(made.path)  # as run.sh does
    session_options = onnxruntime.SessionOptions()
    for library in libraries:
        session_options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession("m/1/model.onnx", session_options)
    assert {each.name for each in session.get_inputs()} == {each.name for each in config.input}


def test_tensorrt_backend(engines: dict[str, Path], tmp_path: Path) -> None:
    plugins = [tmp_path / name for name in ("one.so", "two.so")]
    for plugin in plugins:
        plugin.write_bytes(plugin.name.encode())
    repository = tmp_path / "a b" / "r"
    arguments = [word for plugin in plugins for word in ("--plugin", str(plugin))]
    assert main(
        ["deploy", "triton", str(engines["tensorrt"]), "-o", str(repository), "--name", "m", "--backend",
         "tensorrt", *arguments]
    ) == 0  # fmt: skip
    config = parsed(repository, "m")
    assert config.backend == "tensorrt" and config.default_model_filename == "model.plan"
    assert (repository / "m/1/model.plan").read_bytes() == b"no engine"
    manifest = json.loads((engines["tensorrt"] / "doge_engine.json").read_text())["bundle"]
    graph = manifest["graph"]
    assert [each.name for each in config.input] == [each["name"] for each in graph["inputs"]]
    assert tensors(config.input)["past_key_values.0.key"] == ("TYPE_FP16", [-1, 2, 40, 16])
    assert tensors(config.output)["logits"] == ("TYPE_FP16", [-1, -1, 257])
    group = config.instance_group[0]
    assert group.kind == group.KIND_GPU and list(group.profile) == ["0", "1"]
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    server.chmod(0o755)
    done = subprocess.run(
        [repository / "run.sh", "--http-port=1"],
        env=os.environ | {"TRITONSERVER": str(server)},
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [f"{repository}/m/1/{plugin.name}" for plugin in plugins]
    assert done.stdout.splitlines() == [
        f"--model-repository={repository}",
        f"--backend-config=tensorrt,plugins={';'.join(paths)}",
        "--http-port=1",
    ]
    assert [Path(path).read_bytes() for path in paths] == [b"one.so", b"two.so"]
    assert "was never run" in (repository / "README.md").read_text()


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_the_server_takes_the_configuration(
    backend: str, engines: dict[str, Path], toy: Bundle, tmp_path: Path
) -> None:
    """Read as the server reads it; what is missing is the backend, which nvidia-pytriton does not have."""

    def refusal() -> str:
        environment = os.environ | {"TRITONSERVER": str(SERVER / "pytriton/tritonserver/bin/tritonserver")}
        options = ["--backend-directory", str(tmp_path), "--disable-auto-complete-config", "--http-port=0"]
        done = subprocess.run(
            [tmp_path / "r/run.sh", *options], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        return done.stderr

    source = engines["tensorrt"] if backend == "tensorrt" else toy.path
    deploy_triton(source, tmp_path / "r", backend=backend, name="m", instances=2)
    assert f"unable to find backend library for backend '{backend}'" in refusal()
    file = tmp_path / "r/m/config.pbtxt"
    whole = file.read_text()
    for right, wrong, said in (
        ("data_type: TYPE_INT64", "data_type: TYPE_LONG", "Unknown enumeration value"),
        ("data_type: TYPE_INT64", "data_kind: TYPE_INT64", 'has no field named "data_kind"'),
        ("dims: [-1, -1]", "dims: [-1, 0]", "dimension must be integer >= 1, or -1"),
    ):
        assert right in whole
        file.write_text(whole.replace(right, wrong, 1))
        found = refusal()
        assert said in found and "unable to find backend" not in found, found


def test_python_backend(toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r"
    arguments = ["deploy", "triton", str(toy.path), "-o", str(output), "--instances", "2", "--json", "-"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out) == {
        "path": str(output),
        "name": "bundle",
        "backend": "python",
        "instances": 2,
        "command": f"{output}/run.sh",
    }
    Bundle.open(output / "bundle/1/bundle").verify()
    config = parsed(output, "bundle")
    assert config.model_transaction_policy.decoupled and config.instance_group[0].count == 2
    assert [each.name for each in config.input if not each.optional] == ["text_input"]
    assert tensors(config.input)["stop"] == ("TYPE_STRING", [-1])
    assert not config.parameters and (output / "run.sh").stat().st_mode & stat.S_IXOTH
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--force", "--threads", "3"]) == 0
    assert parsed(output, "bundle").parameters["threads"].string_value == "3"


def test_run_says_what_it_lacks(toy: Bundle, tmp_path: Path) -> None:
    made = deploy_triton(toy.path, tmp_path / "r")
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    for python, sentence in (
        (bare / "bin" / "python", "has no doge-export: set PYTHON to the interpreter that has it."),
        (sys.executable, f"There is no none, and {sys.executable} has no nvidia-pytriton for its version"),
        (new_environment(tmp_path / "numpy-2", ours_first=True), "reads arrays of numpy 2 wrongly"),
    ):
        environment = os.environ | {"PYTHON": str(python), "TRITONSERVER": "none"}
        done = subprocess.run([made.command], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr
        assert done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backend", "toaster"], "There is no backend 'toaster'. Backends: python, onnxruntime, tensorrt."),
        (["--backend", "tensorrt"], "is a bundle, and Triton's TensorRT backend runs engines. Build one"),
        (["--instances", "0"], "0 instances cannot answer anything"),
        (["--threads", "0"], "0 threads cannot run anything"),
        (["--name", "a b"], "'a b' is no name for a model"),
        (["--plugin", "x.so"], "Plugins are TensorRT's, and the backend is python. Leave --plugin out."),
    ],
)
def test_bad_input(
    flags: list[str], sentence: str, toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "triton", str(toy.path), "-o", str(tmp_path / "r"), *flags]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and out == "" and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_engine_behind_the_python_backend(engines: dict[str, Path], toy: Bundle, tmp_path: Path) -> None:
    """Laid out whole; its session needs a GPU, so that it is not loaded here."""
    source = tmp_path / "engine"
    shutil.copytree(engines["tensorrt-rtx"], source)
    manifest = json.loads((source / "doge_engine.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(toy.path / name, source / name)
    manifest["files"] = hash_files(source)
    del manifest["files"]["doge_engine.json"]
    (source / "doge_engine.json").write_text(json.dumps(manifest))
    deploy_triton(source, tmp_path / "r", name="m")
    assert parsed(tmp_path / "r", "m").backend == "python"
    laid = open_folder(tmp_path / "r/m/1/bundle")
    assert laid.compiled and laid.files == open_folder(source).files
    laid.verify()


def test_bad_engines(engines: dict[str, Path], tmp_path: Path) -> None:
    full, rtx = engines["tensorrt"], engines["tensorrt-rtx"]
    unnamed = tmp_path / "a;b.so"
    unnamed.touch()
    for source, options, sentence in (
        (rtx, {"backend": "tensorrt"}, r"built by tensorrt-rtx.*--backend python.*--runtime tensorrt"),
        (full, {"backend": "onnxruntime"}, r"is a TensorRT engine.*Give the bundle"),
        (full, {"threads": 1}, r"Leave --threads out"),
        (full, {"plugins": [tmp_path / "none.so"]}, r"Leave --plugin out"),
        (full, {"backend": "tensorrt", "plugins": [tmp_path / "none.so"]}, r"There is no plugin"),
        (full, {"backend": "tensorrt", "plugins": [unnamed]}, r"does not fit in a command"),
        (full, {}, r"has no tokenizer"),
    ):
        with pytest.raises(DogeExportError, match=sentence):
            deploy_triton(source, tmp_path / "r", **options)
    assert list(tmp_path.iterdir()) == [unnamed]


def test_bad_bundles(exported: Any, toy: Bundle, tmp_path: Path) -> None:
    """What the server would refuse to load is refused before."""
    rounded = exported(ROUNDED)[1]
    with pytest.raises(DogeExportError, match=r"dequantize at load.*Choose --backend python"):
        deploy_triton(rounded.path, tmp_path / "r", backend="onnxruntime")
    bfloat = exported({"target": "onnx", "dtype": "bfloat16"})[1]
    with pytest.raises(DogeExportError, match="has no tokenizer"):
        deploy_triton(bfloat.path, tmp_path / "r")
    copy = write_toy_bundle(tmp_path / "changed", "growing")
    copy.model_path.write_bytes(copy.model_path.read_bytes()[:-1])
    for backend in ("python", "onnxruntime"):
        with pytest.raises(DogeExportError, match="is truncated"):
            deploy_triton(copy.path, tmp_path / "r", backend=backend)
    with pytest.raises(DogeExportError, match="not a bundle"):
        deploy_triton(tmp_path, tmp_path / "r")
    assert list(tmp_path.iterdir()) == [copy.path]
