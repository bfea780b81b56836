"""The session of an engine on fakes of the driver and of TensorRT's runtime (_gpu.py).

That TensorRT's kernels compute what the file says is shown by tests/gpu alone, on a GPU.
"""

import gc
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.bench.worker import Ours
from doge_export.cli.app import run
from doge_export.core.errors import DogeExportError
from doge_export.engines import KINDS, Engine, build_engine
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime.tensorrt import TensorRTSession
from tests.tensorrt._gpu import FakeContext, FakeEngine, FakeGpu, FakeOptions, FakeRuntime, write_engine

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 9], [11, 12, 13]]


@pytest.fixture
def bundle(exported: Any) -> Any:
    """A window of 12 keys: which are used depends on dt, which is carried from step to step."""
    return exported({"target": "tensorrt", "max_length": 40})[1]


@pytest.fixture
def engine(bundle: Any, gpu: FakeGpu, tmp_path: Path) -> Engine:
    return gpu.knows(write_engine(bundle, tmp_path / "engine"), bundle)


def calls(steps: list[int], rows: int = 2) -> Iterator[tuple[Any, Any, Any]]:
    """ids, mask so far, positions; the second row left padded."""
    length = sum(steps)
    ids = np.random.default_rng(3).integers(3, 257, (rows, length))
    mask = np.ones_like(ids)
    mask[1:, :2] = 0
    positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
    at = 0
    for count in steps:
        here = slice(at, at + count)
        at += count
        yield ids[:, here], mask[:, :at], positions[:, here]


def logits_of(session: Session, steps: list[int], rows: int = 2) -> Any:
    cache = session.new_cache(rows)
    found = []
    for ids, mask, positions in calls(steps, rows):
        logits, cache = session.step(ids, mask, positions, cache)
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_every_schedule_is_the_graph_s(
    dtype: str, moe: bool, exported: Any, gpu: FakeGpu, tmp_path: Path
) -> None:
    """Chunks, single tokens, both contexts in turns, past the window, to the last slot."""
    bundle = exported({"target": "tensorrt", "max_length": 40, "dtype": dtype}, is_moe=moe)[1]
    engine = gpu.knows(write_engine(bundle, tmp_path / "engine"), bundle)
    session, other = Session.open(engine), Session.open(bundle, native=False)
    assert isinstance(session, TensorRTSession)
    before = gpu.counts()
    for steps in ([7, *[1] * 12], [1, 1, 1, 5, 1, 9, 1, 1], [40], [3, 2, *[1] * 35]):
        expected = logits_of(other, steps)
        got = logits_of(session, steps)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)
    after = gpu.counts()
    singles = 12 + 6 + 35
    assert after["captures"] - before["captures"] == 1
    assert after["launches"] - before["launches"] == singles - 1  # the very first is put on the stream
    assert {shape for shape in gpu.runs if shape[1] != 1} == {(2, n) for n in (7, 5, 9, 40, 3, 2)}


def test_greedy_tokens(engine: Engine, bundle: Any, gpu: FakeGpu) -> None:
    options = GenerationOptions(max_new_tokens=30)
    session, other = Session.open(engine.path), Session.open(bundle)
    for prompts in ([PROMPTS[0]], PROMPTS, [[7]]):
        expected = [completion.ids for completion in generate(other, prompts, options).completions]
        assert [completion.ids for completion in generate(session, prompts, options).completions] == expected
    with pytest.raises(DogeExportError, match=r"8 tokens and 34 new ones need 41 slots.*holds 40"):
        generate(session, PROMPTS, GenerationOptions(max_new_tokens=34))


def test_a_real_engine_s_folder(bundle: Any, gpu: FakeGpu, tmp_path: Path) -> None:
    """What TensorRT for RTX built is found, checked and asked for its tensors like any other."""
    built = build_engine(bundle.path, tmp_path / "engine", capabilities=["89"]).engine
    session = Session.open(gpu.knows(built, bundle))
    made = generate(session, [PROMPTS[0]], GenerationOptions(max_new_tokens=5)).completions[0].ids
    expected = generate(Session.open(bundle), [PROMPTS[0]], GenerationOptions(max_new_tokens=5))
    assert made == expected.completions[0].ids
    assert session.versions == {"tensorrt-rtx": built.version}


def test_conversations_side_by_side_and_one_after_another(engine: Engine, bundle: Any, gpu: FakeGpu) -> None:
    session, other = Session.open(engine), Session.open(bundle, native=False)
    start = gpu.counts()
    steps = [4, 1, 1, 1, 1, 1]
    expected = logits_of(other, steps, 1)
    caches = [session.new_cache(1), session.new_cache(1)]
    both = gpu.counts()
    assert both["held"] > start["held"]
    found: list[list[Any]] = [[], []]
    for ids, mask, positions in calls(steps, 1):
        for at, cache in enumerate(caches):
            logits, caches[at] = session.step(ids, mask, positions, cache)
            found[at].append(logits)
    for each in found:
        np.testing.assert_array_equal(np.concatenate(each, axis=1), expected)
    assert gpu.counts()["captures"] - start["captures"] == 2
    # The first that ends keeps its place; the second is one too many, and goes when there is need of another.
    del caches, cache
    np.testing.assert_array_equal(logits_of(session, steps, 1), expected)
    assert gpu.counts()["captures"] - start["captures"] == 2
    kept = gpu.counts()["held"]
    assert start["held"] < kept < both["held"] + 2 * expected.nbytes
    # Another number of rows is another place, in the place of that.
    np.testing.assert_array_equal(logits_of(session, steps, 2), logits_of(other, steps, 2))
    assert gpu.counts()["captures"] - start["captures"] == 3
    del session, found
    gc.collect()
    assert gpu.counts()["held"] == 0 and gpu.counts()["graphs"] == 0


def test_the_last_alone(engine: Engine, bundle: Any) -> None:
    """Of a prompt, and of a single token."""
    for session in (Session.open(engine), Session.open(bundle, native=False)):
        whole, some = session.new_cache(2), session.new_cache(2)
        for call in calls([7, 5, 1]):
            logits, whole = session.step(*call, whole)
            last, some = session.step(*call, some, last=True)
            np.testing.assert_array_equal(last, logits[:, -1:])


def test_what_was_given_stays(engine: Engine) -> None:
    """Logits are no window into memory that the next step writes."""
    session = Session.open(engine)
    cache, found, copies = session.new_cache(2), [], []
    for ids, mask, positions in calls([3, 1, 1, 1, 1]):
        logits, cache = session.step(ids, mask, positions, cache)
        found.append(logits)
        copies.append(logits.copy())
    for logits, copy in zip(found, copies, strict=True):
        np.testing.assert_array_equal(logits, copy)


def test_in_another_thread(engine: Engine, bundle: Any) -> None:
    """The driver wants to be told of each."""
    session = Session.open(engine)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(logits_of(session, [3, 1, 1, 1])))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], logits_of(Session.open(bundle, native=False), [3, 1, 1, 1]))


def test_where_a_step_cannot_be_captured(
    engine: Engine,
    bundle: Any,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = logits_of(Session.open(bundle, native=False), [3, 1, 1, 1, 1])
    gpu.capturable, before = False, gpu.counts()
    np.testing.assert_array_equal(logits_of(Session.open(engine), [3, 1, 1, 1, 1]), expected)
    assert gpu.counts()["captures"] == before["captures"] and not caplog.records
    gpu.capturable = True
    run_call = FakeContext.execute_async_v3

    def refuse(context: FakeContext, stream_handle: int) -> bool:
        if gpu.driver.fake_capturing(stream_handle):
            context._engine.log.log(gpu.real.ILogger.ERROR, "Error Code 1: Cuda Runtime (not in a capture)")
            return False
        return run_call(context, stream_handle)

    monkeypatch.setattr(FakeContext, "execute_async_v3", refuse)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits_of(Session.open(engine), [3, 1, 1, 1, 1]), expected)
    assert [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()] == [
        "A step cannot be a CUDA graph: TensorRT for RTX "
        f"{engine.version} does not run the engine: not in a capture. Where doge-export doctor finds nothing "
        "wrong, build it again. Each is launched call by call, slower."
    ]


def test_no_room(engine: Engine, gpu: FakeGpu) -> None:
    session = Session.open(engine)
    cache = session.new_cache(1)
    assert cache.capacity == 40
    for ids, mask, positions in calls([39, 1], 1):
        spent = cache
        _, cache = session.step(ids, mask, positions, cache)
    one = np.array([[5]])
    with pytest.raises(DogeExportError, match=r"holds 40 tokens, and this needs 41.*--max-length 41"):
        session.step(one, np.ones((1, 41), np.int64), np.array([[40]]), cache)
    with pytest.raises(ValueError, match="spent"):
        session.step(one, np.ones((1, 40), np.int64), np.array([[39]]), spent)
    with pytest.raises(DogeExportError, match=r"at most 2 rows in a call, and this needs 3.*--max-batch 3"):
        session.new_cache(3)
    gpu.set(memory=gpu.counts()["held"])
    with pytest.raises(DogeExportError, match=r"memory of the GPU does not suffice. A smaller --max-batch"):
        session.new_cache(2)
    gpu.set()
    gpu.refuses = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)"
    with pytest.raises(DogeExportError, match=r"does not run the engine: an illegal memory access. Where"):
        logits_of(session, [3], 1)


def refusal(engine: Engine) -> str:
    with pytest.raises(DogeExportError) as caught:
        Session.open(engine)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_another_gpu(bundle: Any, engine: Engine, gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.set(capability=86)
    assert refusal(engine) == (
        f"{engine.path} was built for compute capability 8.9, and the GPU here, Toaster 3000, has 8.6. Build "
        "it again with --sm 86."
    )
    gpu.set(capability=90)
    assert (
        "Toaster 3000, has 9.0. TensorRT for RTX builds for no such GPU: build it again here with"
        in refusal(write_engine(bundle, tmp_path / "two", capabilities=("8.0", "8.9")))
    )
    gpu.set(devices=0)
    assert refusal(engine).startswith(
        "The NVIDIA driver finds no GPU here: no CUDA-capable device is detected."
    )


def test_another_tensorrt(engine: Engine, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = engine.path / "doge_engine.json"
    raw = json.loads(manifest.read_text())

    def changed(**runtime: str) -> Engine:
        manifest.write_text(json.dumps({**raw, "runtime": {**raw["runtime"], **runtime}}))
        return Engine.open(engine.path)

    here = raw["runtime"]["version"]
    assert f"built by TensorRT for RTX 1.2.3, and {here} is installed here" in refusal(
        changed(version="1.2.3")
    )
    assert "was built by crystal, which this version does not know" in refusal(changed(kind="crystal"))

    def installed(**modules: tuple[str, ...]) -> None:
        for name, kind in list(KINDS.items()):
            monkeypatch.setitem(KINDS, name, replace(kind, modules=modules[name.replace("-", "_")]))

    installed(tensorrt=("no_such_module",), tensorrt_rtx=("no_such_module",))
    found = refusal(changed())
    assert (
        "was built by TensorRT for RTX, which is not installed here. pip install 'doge-export[tens" in found
    )
    installed(tensorrt=("json",), tensorrt_rtx=("no_such_module",))
    assert ", or build it again with --runtime tensorrt, which is installed." in refusal(changed())


def test_a_damaged_engine(engine: Engine, gpu: FakeGpu) -> None:
    """The verdict is TensorRT's own."""
    engine.model_path.write_bytes(b"not an engine" * 100)
    sentence = refusal(engine)
    assert (
        "does not load the engine: " in sentence and "The file is of another TensorRT, or damaged" in sentence
    )


def test_the_fake_has_the_methods_of_the_bindings(gpu: FakeGpu) -> None:
    real = gpu.real
    for fake, of in (
        (FakeRuntime, real.Runtime),
        (FakeEngine, real.ICudaEngine),
        (FakeContext, real.IExecutionContext),
        (FakeOptions, real.IRuntimeConfig),
    ):
        for name, method in vars(fake).items():
            if name.startswith("_"):
                continue
            documented = getattr(of, name).__doc__
            names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
            assert all(argument in documented for argument in names), (of, name)
    for name in ("num_io_tensors", "num_optimization_profiles"):
        assert hasattr(real.ICudaEngine, name)
    assert hasattr(real.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained fixture, with its tokenizer."""
    options = ExportOptions.resolve(target="tensorrt", max_length=160)
    return export_model(
        "doge-tiny", tmp_path_factory.mktemp("tiny") / "bundle", options, validate=False
    ).bundle


def test_commands(tiny: Any, gpu: FakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """generate, eval and validate take the folder, and say the same as of the bundle."""
    folder = str(gpu.knows(write_engine(tiny, tmp_path / "engine", max_batch=3), tiny).path)
    text = tmp_path / "text.txt"
    text.write_text("My fellow citizens: I stand here today humbled by the task before us. " * 8)
    said = []
    for of in (folder, str(tiny.path)):
        assert run(["generate", of, "-p", "My fellow", "--temperature", "0", "--max-new-tokens", "20",
                    "--json", "-"]) == 0  # fmt: skip
        said.append(json.loads(capsys.readouterr().out)["ids"])
        assert run(["eval", of, "--text", str(text), "--window", "40", "--json", "-"]) == 0
        said.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert said[0] == said[2] and len(said[0]) == 20
    assert said[1] == pytest.approx(said[3], rel=1e-5)
    run(["doctor", folder])  # its exit code is about the machine
    said_of = capsys.readouterr().out
    assert "loads the engine" in said_of and "Toaster 3000, compute capability 8.9" in said_of
    report = tmp_path / "report.json"
    assert run(["validate", folder, "--reference", "doge-tiny", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "parity: " in out and ", exact; " in out and "an engine does not show them" in out
    found = json.loads(report.read_text())
    assert found["passed"] and found["max_abs_diff"] < 1e-4 and "model.engine" in found["files"]
    assert found["greedy"]["agreed"] == found["greedy"]["new_tokens"]
    assert any("batch 3" in check["name"] for check in found["checks"])


def test_no_driver(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is where this runs without a GPU; elsewhere the name of the library is another."""
    monkeypatch.setattr("doge_export.runtime.tensorrt.driver.LIBRARY", "libcuda.so.of.nowhere")
    folder = str(write_engine(tiny, tmp_path / "engine").path)
    text = tmp_path / "text.txt"
    text.write_text("My fellow citizens")
    for command in (
        ["generate", folder, "-p", "My"],
        ["eval", folder, "--text", str(text)],
        ["validate", folder, "--reference", "doge-tiny"],
    ):
        assert run(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err == (
            "error: There is no NVIDIA driver here (libcuda.so.of.nowhere), and an engine runs on a GPU "
            "alone. Without one, run the bundle that the engine was built from.\n"
        )


def test_bench_worker(tiny: Any, gpu: FakeGpu, tmp_path: Path) -> None:
    """What `bench` runs in a process of its own, where the fake would not be."""
    engine = gpu.knows(write_engine(tiny, tmp_path / "engine"), tiny)
    ours = Ours()
    opened = ours.open(str(engine.path), threads=1)
    assert opened["graph"] == "model.engine" and not opened["native"] and "tensorrt-rtx" in opened["versions"]
    assert ours.round([5, 6, 7], 4)["decode_tokens"] == 3
