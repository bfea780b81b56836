"""Real engines of the trained fixtures, their folders, and what is refused."""

import importlib.util
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.engines import Engine, build_engine
from doge_export.engines.build import read_timings
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime.tensorrt import kinds
from doge_export.runtime.tensorrt.kinds import Kind, Opened, open_kind
from doge_export.validate.diagnosis.bundle_weights import Stored

ROOT = Path(__file__).resolve().parents[2]


def each_once(bundle: Bundle, engine: Engine, reordered: bool = False) -> bool:
    """Whether the engine has every large tensor of the bundle just once, as it is or transposed; or, where
    it may have been `reordered`, none twice."""
    spec = importlib.util.spec_from_file_location("engine_table", ROOT / "scripts" / "engine_table.py")
    assert spec is not None and spec.loader is not None
    engine_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine_table)
    found = engine_table.copies(bundle, engine.model_path)
    return found["once"] > 0 and found["several"] == 0 and (reordered or found["elsewhere"] == 0)


@pytest.fixture(scope="module")
def small(exported: Any) -> Any:
    return exported({"target": "tensorrt", "max_length": 40, "dtype": "float16"})[1]


@pytest.mark.parametrize(
    ("name", "dtype", "capabilities", "rows"),
    [("doge-tiny", "float16", "80,86,89,120", 1), ("doge-tiny-moe", "bfloat16", "8.9", 3)],
)
def test_fixtures(
    name: str, dtype: str, capabilities: str, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ExportOptions.resolve(target="tensorrt", dtype=dtype, max_length=256)
    bundle = export_model(name, tmp_path / "bundle", options, validate=False).bundle
    report = tmp_path / "report.json"
    arguments = ["build-engine", str(bundle.path), "-o", str(tmp_path / "engine"), "--sm", capabilities]
    assert run([*arguments, "--max-batch", str(rows), "--json", str(report)]) == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'engine'}: tensorrt-rtx 1." in out and err == ""
    engine = Engine.open(tmp_path / "engine")
    engine.verify()
    assert (engine.path / "tokenizer.json").is_file()
    assert engine.manifest == bundle.manifest and engine.config == bundle.config
    wanted = {"80,86,89,120": ("8.0", "8.6", "8.9", "12.0"), "8.9": ("8.9",)}[capabilities]
    assert engine.runtime == "tensorrt-rtx" and engine.capabilities == wanted
    prefill, decode = engine.profiles
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert engine.max_batch == rows
    assert prefill.inputs["input_ids"] == ((1, 1), (1, 256), (rows, 256))
    more = max(rows, 2)
    assert decode.inputs["input_ids"] == ((1, 1), (1, 1), (more, 1))
    kv = (2, 256, bundle.config.head_dim)
    assert decode.inputs["past_key_values.0.key"] == ((1, *kv), (1, *kv), (more, *kv))
    shown = json.loads(report.read_text())
    assert shown["engine_bytes"] == engine.model_path.stat().st_size
    assert each_once(bundle, engine)
    assert shown["layers"]["cache_updates"] == 2 * bundle.config.num_hidden_layers
    assert shown["seconds"] > 0 and shown["compute_capabilities"] == list(wanted)


@pytest.mark.parametrize(
    ("precision", "rows"), [("int8-row", (1, 1)), ("fp8", (1, 1)), ("nvfp4", (1, 1)), ("int4", (2, 2))]
)
def test_rounded_weights_are_there_once(
    precision: str, rows: tuple[int, int], exported: Any, tmp_path: Path
) -> None:
    """Which they are in these profiles alone: with other numbers of rows most are there twice."""
    options = {"target": "tensorrt", "max_length": 40, "dtype": "float16", "precision": precision}
    bundle = exported(options, vocab_size=512, hidden_size=128, intermediate_size=128)[1]
    engine = build_engine(bundle.path, tmp_path / "engine", capabilities=["12.0"]).engine
    assert tuple(profile.inputs["input_ids"][-1][0] for profile in engine.profiles) == rows
    assert each_once(bundle, engine, reordered=precision == "nvfp4")


def test_folder(small: Any, rtx: Opened, tmp_path: Path) -> None:
    stages: list[str] = []
    output = tmp_path / "engine"
    built = build_engine(
        small.path,
        output,
        capabilities=["80"],
        progress=lambda steps, stage: stages.append(stage),
    )
    assert stages[0] == "parsing" and stages[-1] == "hashing" and len(set(stages)) > 3
    with pytest.raises(DogeExportError, match="exists already"):
        build_engine(small.path, output, capabilities=["80"])
    engine = built.engine
    engine.model_path.write_bytes(engine.model_path.read_bytes()[:-1])
    with pytest.raises(DogeExportError, match=r"model.engine is truncated.*Build it again"):
        Engine.open(output).verify()
    manifest = output / "doge_engine.json"
    whole = manifest.read_text()
    for text, sentence in (
        ("no json", "cannot be read"),
        (json.dumps({**json.loads(whole), "format": 7}), "not of the format"),
        (json.dumps({k: v for k, v in json.loads(whole).items() if k != "profiles"}), "damaged: 'profiles'"),
    ):
        manifest.write_text(text)
        with pytest.raises(DogeExportError, match=sentence):
            Engine.open(output)
    manifest.write_text(whole)
    engine.model_path.unlink()
    with pytest.raises(DogeExportError, match=r"lacks model.engine"):
        Engine.open(output)
    with pytest.raises(DogeExportError, match="is no engine"):
        Engine.open(small.path)


def test_an_interrupt_ends_the_build(small: Any, rtx: Opened, tmp_path: Path) -> None:
    """Not by way of TensorRT, which an exception would end with the process."""

    def interrupt(steps: int, stage: str) -> None:
        if steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(small.path, tmp_path / "engine", capabilities=["80"], progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_refused_by_the_builder(
    exported: Any, rtx: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported({"target": "tensorrt", "max_length": 40, "dtype": "bfloat16"})[1]
    output = tmp_path / "engine"
    assert run(["build-engine", str(bundle.path), "-o", str(output), "--sm", "75"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {rtx.label} refuses the node '")
    assert "Cannot compile for target(s) sm75" in err and "--sm" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_float8(exported: Any, rtx: Opened, tmp_path: Path) -> None:
    """For GPUs that have it; of others the sentence names what has it in the file."""
    bundle = exported({"target": "tensorrt", "max_length": 40, "dtype": "float16", "precision": "fp8"})[1]
    build_engine(bundle.path, tmp_path / "engine", capabilities=["89", "120"])
    with pytest.raises(DogeExportError, match=r"refuses the node '.*sm80.*fp8_e4m3.*Leave that compute"):
        build_engine(bundle.path, tmp_path / "other", capabilities=["80"])


def products(engine: bytes) -> list[tuple[str, ...]]:
    """The types of what each product of an engine reads. Its program stands in it as text, once for each
    profile: tensors with names and types, and operations on these names."""
    found = []
    for program in engine.decode("latin-1").split("\ndescriptors {")[1:]:
        types = dict(re.findall(r'tensor=\{[^\n]*? name="([^"]+)"[^\n]*? type=(\w+) ', program))
        for line in re.findall(r"fully_connected=\{[^\n]*? input=\{([^}]*)\}", program):
            found.append(tuple(types[name] for name in re.findall(r'"([^"]+)"', line)[:2]))
    return found


@pytest.mark.parametrize("capability", ["89", "120"])
def test_float8_inputs(
    capability: str, static_bundle: Any, rtx: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The products of the engine itself are of float8, in both profiles; attention, router and dt are not."""
    _, bundle = static_bundle({}, precision="w8a8-fp8", target="tensorrt")
    engine = build_engine(bundle.path, tmp_path / "engine", capabilities=[capability]).engine
    found = Counter(products(engine.model_path.read_bytes()))
    layers_ = bundle.config.num_hidden_layers
    least = 4 * layers_ + 1  # q, k and v may be one product, and gate and up
    assert found["fp8_e4m3", "fp8_e4m3"] >= 2 * least
    assert set(found) == {("fp8_e4m3", "fp8_e4m3"), ("float", "float")}
    assert found["float", "float"] <= 2 * 3 * layers_, "scores, their values, and dt"
    if capability == "89":
        arguments = ["build-engine", str(bundle.path), "-o", str(tmp_path / "other"), "--sm", "86"]
        assert run(arguments) == 2
        assert "fp8_e4m3" in capsys.readouterr().err


def test_float4(exported: Any, rtx: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For Blackwell alone; in the engine the matrices are float4 still, and no floats of them are there."""
    bundle = exported({"target": "tensorrt", "max_length": 40, "dtype": "float16", "precision": "nvfp4"})[1]
    engine = build_engine(bundle.path, tmp_path / "engine", capabilities=["120"]).engine
    content, stored = engine.model_path.read_bytes(), Stored(bundle.model_path)
    for tensor in onnx.load(bundle.model_path).graph.initializer:
        if "o_proj" not in tensor.name or tensor.data_type != onnx.TensorProto.FLOAT4E2M1:
            continue  # o_proj is what is not laid beside another matrix
        codes = onnx.numpy_helper.to_array(tensor, str(bundle.path)).view(np.uint8)
        packed = [each.reshape(-1, 2) @ np.array([1, 16], np.uint8) for each in (codes, codes.T)]
        numbers = stored.numbers(tensor.name)
        assert numbers is not None
        floats = [each.astype(dtype) for dtype in (np.float16, np.float32) for each in (numbers, numbers.T)]
        assert 1 <= sum(content.count(each.tobytes()[-48:]) for each in packed) <= 2  # a layout a profile
        assert not any(content.count(each.tobytes()[-48:]) for each in floats)
    for capability in ("80", "89"):
        output = tmp_path / capability
        assert run(["build-engine", str(bundle.path), "-o", str(output), "--sm", capability]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {rtx.label} refuses the node '")
        assert f"sm{capability}" in err and "fp4_e2m1" in err and "Leave that compute" in err
        assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sm", "90"], "builds no engine for compute capability 9.0. Choose 7.5, 8.0"),
        (["--sm", "89,x"], "--sm 'x' is no compute capability"),
        (["--runtime", "toaster"], "There is no runtime 'toaster'. Choose tensorrt-rtx or tensorrt."),
        (["--max-batch", "0"], "--max-batch 0 can hold no row"),
        (["--timing-cache", "timings"], "builds without measuring, and has no timings to keep"),
    ],
)
def test_bad_input(
    flags: list[str], sentence: str, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build-engine", str(small.path), "-o", str(tmp_path / "engine"), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_bundle(exported: Any, small: Any, tmp_path: Path) -> None:
    other = exported()[1]
    with pytest.raises(
        DogeExportError, match=r"exported with --target ort-cpu. Export it with --target tens"
    ):
        build_engine(other.path, tmp_path / "engine")
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    data = copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    with pytest.raises(DogeExportError, match="was changed"):
        build_engine(copy, tmp_path / "engine")


def test_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken_tensorrt.py"
    broken.write_text("raise ImportError('libnvinfer.so.11: no such file\\nsecond line')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(**modules: tuple[str, ...]) -> None:
        made = {
            name: Kind(name, old.label, modules[name.replace("-", "_")], old.install, old.portable)
            for name, old in KINDS.items()
        }
        monkeypatch.setattr(kinds, "KINDS", made)

    KINDS = dict(kinds.KINDS)
    installed(tensorrt=("no_such_module",), tensorrt_rtx=("no_such_module",))
    with pytest.raises(DogeExportError, match=r"RTX is not installed here. pip install 'doge-export\[tensor"):
        open_kind("tensorrt-rtx")
    installed(tensorrt=("no_such_module",), tensorrt_rtx=("json",))
    with pytest.raises(DogeExportError, match="or choose --runtime tensorrt-rtx, which is installed"):
        open_kind("tensorrt")
    installed(tensorrt=("no_such_module", "broken_tensorrt"), tensorrt_rtx=("no_such_module",))
    with pytest.raises(DogeExportError, match=r"cannot be loaded: libnvinfer.so.11: no such file. Install"):
        open_kind("tensorrt")


class FullTensorRT:
    """What full TensorRT is on a machine without a driver, as far as this package sees it."""

    __version__ = "11.4"

    class NetworkDefinitionCreationFlag:
        pass

    class ILogger:
        ERROR = 1

    @staticmethod
    def Builder(log: Any) -> None:
        log.log(
            1, "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (CUDA driver is missing)"
        )
        raise TypeError("pybind11::init(): factory function returned nullptr")


def test_no_driver(small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = Opened(kinds.KINDS["tensorrt"], FullTensorRT)
    monkeypatch.setattr("doge_export.engines.build.open_kind", lambda name: opened)
    with pytest.raises(DogeExportError) as caught:
        build_engine(small.path, tmp_path / "engine", runtime="tensorrt")
    assert "TensorRT 11.4 cannot start its builder: " in str(caught.value)
    assert "CUDA driver is missing" in str(caught.value) and "--runtime tensorrt-rtx needs" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_timings(tmp_path: Path) -> None:
    """Read where they are, and refused where they are another TensorRT's."""
    given: list[bytes] = []

    class Config:
        accepts = True

        def create_timing_cache(self, content: bytes) -> str:
            given.append(content)
            return "cache"

        def set_timing_cache(self, cache: str, ignore_mismatch: bool) -> bool:
            return self.accepts and not ignore_mismatch

    path = tmp_path / "timings"
    assert read_timings(Config(), path) == "cache"
    path.write_bytes(b"measured")
    assert read_timings(Config(), path) == "cache" and given == [b"", b"measured"]
    Config.accepts = False
    with pytest.raises(DogeExportError, match="is no timing cache of this TensorRT"):
        read_timings(Config(), path)
    assert read_timings(Config(), None) is None


def test_full_tensorrt_names_no_gpu() -> None:
    full = Opened(kinds.KINDS["tensorrt"], FullTensorRT)
    assert full.capabilities(None) == ()
    with pytest.raises(DogeExportError, match="builds for the GPU that it finds"):
        full.capabilities(["90"])
