"""Engines on a GPU: built, loaded, held to the reference, and used. `make test-gpu`.

Written on a machine without a GPU, and not run on one yet.
"""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.cli.app import run
from doge_export.core.errors import DogeExportError
from doge_export.engines import KINDS, Engine
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model, validate_bundle
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime.tensorrt import TensorRTSession
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.slot import Slot

pytestmark = pytest.mark.gpu

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 9], [11, 12, 13], [40]]
Built = Callable[..., Engine]


def on_gpu(engine: Engine) -> TensorRTSession:
    session = Session.open(engine)
    assert isinstance(session, TensorRTSession)
    return session


def logits_of(session: Session, steps: list[int], rows: int = 1) -> Any:
    length = sum(steps)
    ids = np.random.default_rng(3).integers(3, 257, (rows, length))
    mask = np.ones_like(ids)
    mask[1:, :2] = 0
    positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
    cache, found, at = session.new_cache(rows), [], 0
    for count in steps:
        here = slice(at, at + count)
        at += count
        logits, cache = session.step(ids[:, here], mask[:, :at], positions[:, here], cache)
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_parity(dtype: str, moe: bool, exported: Any, built: Built) -> None:
    """The whole table of schedules against transformers, past a window of 12: sorted keys, ties, padding."""
    options = {"target": "tensorrt", "max_length": 64, "dtype": dtype}
    checkpoint, bundle = exported(options, is_moe=moe)
    report = validate_bundle(built(bundle).path, str(checkpoint))
    assert report.passed, [check for check in report.checks if not check.passed]
    assert any("batch 3" in check.name for check in report.checks)


@pytest.mark.parametrize("precision", ["int8-row", "int4", "fp8", "nvfp4"])
def test_rounded_weights(precision: str, cuda: Cuda, exported: Any, built: Built) -> None:
    least = {"fp8": (8, 9), "nvfp4": (10, 0)}.get(precision, (0, 0))
    if tuple(map(int, cuda.capability.split("."))) < least:
        pytest.skip(f"compute capability {cuda.capability} has no such type")
    options = {"target": "tensorrt", "max_length": 64, "dtype": "float16", "precision": precision}
    checkpoint, bundle = exported(options)
    report = validate_bundle(built(bundle).path, str(checkpoint))
    assert report.passed, [check for check in report.checks if not check.passed]


def test_caches_are_updated_in_place(exported: Any, built: Built) -> None:
    """As the slot has bound them."""
    bundle = exported({"target": "tensorrt", "max_length": 64, "dtype": "float16"})[1]
    loaded = on_gpu(built(bundle))._loaded
    cache = bundle.manifest.cache
    for before, after in zip(cache.inputs, cache.outputs, strict=True):
        assert loaded.aliased(after) == (None if after.endswith(".dt") else before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plugins(dtype: str, runtime: str, exported: Any, built: Built) -> None:
    """The Triton kernels, embedded in an engine: attention and experts, past the window."""
    if KINDS[runtime].portable:
        pytest.skip("TensorRT for RTX takes no plugins")
    options = {"target": "tensorrt", "max_length": 64, "dtype": dtype, "plugins": True}
    checkpoint, bundle = exported(options, is_moe=True)
    engine = built(bundle)
    loaded, cache = on_gpu(engine)._loaded, bundle.manifest.cache
    for before, after in zip(cache.inputs, cache.outputs, strict=True):
        assert loaded.aliased(after) == before
    report = validate_bundle(engine.path, str(checkpoint))
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_is_the_calls_it_was_made_of(
    rows: int, exported: Any, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, over many steps and a second text."""
    bundle = exported({"target": "tensorrt", "max_length": 64, "dtype": "float16"})[1]
    session, steps = on_gpu(built(bundle)), [9, *[1] * 40, 4, *[1] * 8]
    with_graph = [logits_of(session, steps, rows) for _ in range(2)]
    (slot,) = session._idle
    assert slot._graph is not None, "TensorRT could not be captured"
    monkeypatch.setattr(Slot, "_captured", lambda slot: None)
    without = logits_of(on_gpu(built(bundle)), steps, rows)
    for logits in with_graph:
        np.testing.assert_array_equal(logits, without)


def test_conversations_side_by_side(exported: Any, built: Built) -> None:
    bundle = exported({"target": "tensorrt", "max_length": 64, "dtype": "float16"})[1]
    session = on_gpu(built(bundle))
    options = GenerationOptions(max_new_tokens=20)
    alone = [generate(session, [prompt], options).completions[0].ids for prompt in PROMPTS]
    caches = [session.new_cache(1) for _ in PROMPTS]
    fed = [list(prompt) for prompt in PROMPTS]
    for _ in range(20):
        for at, ids in enumerate(fed):
            new = np.array([ids[caches[at].length :]])
            positions = np.arange(caches[at].length, len(ids))[None]
            mask = np.ones((1, len(ids)), np.int64)
            logits, caches[at] = session.step(new, mask, positions, caches[at])
            ids.append(int(logits[0, -1].argmax()))
    assert [ids[len(prompt) :] for ids, prompt in zip(fed, PROMPTS, strict=True)] == alone


def test_memory_goes_back(exported: Any, built: Built, cuda: Cuda) -> None:
    """Sessions that come and go leave no more behind than the first did."""
    bundle = exported({"target": "tensorrt", "max_length": 64, "dtype": "float16"})[1]
    held = []
    for _ in range(4):
        logits_of(on_gpu(built(bundle)), [5, 1, 1, 1], 3)
        gc.collect()
        held.append(cuda.free_memory())
    assert held[-1] >= held[1] - (1 << 20), held


def test_no_room(exported: Any, built: Built) -> None:
    bundle = exported({"target": "tensorrt", "max_length": 64, "dtype": "float16"})[1]
    session = on_gpu(built(bundle))
    assert np.isfinite(logits_of(session, [60, 1, 1, 1, 1])).all()
    with pytest.raises(DogeExportError, match="holds 64 tokens, and this needs 65"):
        logits_of(session, [64, 1])
    with pytest.raises(DogeExportError, match="at most 3 rows"):
        session.new_cache(4)


@pytest.fixture(scope="session", params=["doge-tiny", "doge-tiny-moe"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    options = ExportOptions.resolve(target="tensorrt", dtype="float16", max_length=256)
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    return request.param, export_model(request.param, folder, options, validate=False).bundle


def test_commands(trained: tuple[str, Any], built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """validate, generate, eval and bench on the trained fixtures. Figures go to stdout: pytest -s."""
    name, bundle = trained
    folder = str(built(bundle).path)
    assert run(["validate", folder, "--reference", name]) == 0
    shown = [capsys.readouterr().out]
    found = {}
    text = str(Path(__file__).parents[2] / "models/heldout.txt")
    for of in (folder, str(bundle.path)):
        assert run(["generate", of, "-p", "My fellow citizens", "--temperature", "0", "--json", "-"]) == 0
        words = json.loads(capsys.readouterr().out)["text"]
        assert run(["eval", of, "--text", text, "--limit", "4000", "--window", "256", "--json", "-"]) == 0
        found[of] = (words, json.loads(capsys.readouterr().out)["perplexity"])
    (words, perplexity), (_, expected) = found.values()
    assert len(words) > 40
    assert perplexity == pytest.approx(expected, rel=2e-3)
    assert run(["bench", folder, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    shown.append(json.dumps({key: figures[key] for key in figures if key.endswith("per_second")}))
    with capsys.disabled():
        print("", name, folder, *shown, sep="\n")
    assert figures["decode_tokens_per_second"] > 0 and figures["graph"] == "model.engine"
