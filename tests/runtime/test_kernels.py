"""Sessions with the native library: it is used where it is there, missed where it is not."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from doge_export import plugin_library
from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime import graph as module
from tests.runtime._toy import write_toy_bundle

STATIC = {"kv_cache": "static", "max_length": 40}


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """No library, in a process that has not warned of it yet."""
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", tmp_path / "libdoge_export.so")
    monkeypatch.setattr(module, "_warned", set())


def _logits(session: Session, lengths: tuple[int, ...] = (7, 1, 4, 1)) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 257, (2, sum(lengths)))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
    cache, pieces, at = session.new_cache(2), [], 0
    for count in lengths:
        here = slice(at, at + count)
        logits, cache = session.step(ids[:, here], mask[:, : at + count], positions[:, here], cache)
        pieces.append(logits)
        at += count
    return np.concatenate(pieces, axis=1)


@pytest.mark.parametrize("options", [{}, STATIC], ids=["growing", "static"])
@pytest.mark.parametrize("moe", [False, True])
def test_nodes_of_ours_run_on_kernels(exported, options, moe):
    _, bundle = exported(options, is_moe=moe)
    native, plain = Session.open(bundle, threads=1), Session.open(bundle, threads=1, native=False)
    assert native.library == plugin_library() and plain.library is None
    assert native.kernels and plain.kernels == {}
    np.testing.assert_allclose(_logits(native), _logits(plain), rtol=1e-4, atol=1e-4)


def test_a_static_cache_is_one_set_of_buffers_with_kernels(exported):
    _, bundle = exported(STATIC)
    for native in (True, False):
        cache = Session.open(bundle, native=native).new_cache(1)
        shared = [past is present for past, present in zip(cache.past, cache.present, strict=True)]
        assert shared == [native] * len(shared)


def test_a_static_cache_of_standard_operators_is_never_shared(tmp_path):
    session = Session.open(write_toy_bundle(tmp_path, "static"))
    assert session.library is not None and session.kernels == {}
    cache = session.new_cache(1)
    assert all(past is not present for past, present in zip(cache.past, cache.present, strict=True))


def test_a_missing_library_is_one_warning_a_process(exported, missing, caplog):
    _, bundle = exported()
    caplog.set_level(logging.WARNING)
    sessions = [Session.open(bundle, threads=1) for _ in range(2)]
    assert len([record for record in caplog.records if record.name == module.__name__]) == 1
    assert "libdoge_export.so" in caplog.text and "without its kernels" in caplog.text
    assert all(session.library is None and session.kernels == {} for session in sessions)
    options = GenerationOptions(max_new_tokens=3)
    assert len(generate(sessions[0], [[3, 4, 5]], options).completions[0].ids) in (1, 2, 3)


def test_a_graph_that_has_no_use_for_the_library_does_not_miss_it(tmp_path, missing, caplog):
    caplog.set_level(logging.WARNING)
    Session.open(write_toy_bundle(tmp_path))
    assert caplog.records == []


@pytest.mark.parametrize("content", [b"", b"no library at all"], ids=["empty", "text"])
def test_a_damaged_library_is_one_sentence(tmp_path, missing, content):
    library = Path(tmp_path / "libdoge_export.so")
    library.write_bytes(content)
    with pytest.raises(DogeExportError, match=r"cannot use the native library .*make setup") as raised:
        Session.open(write_toy_bundle(tmp_path / "bundle"))
    assert "\n" not in str(raised.value)


def test_a_library_that_refuses_the_runtime_is_one_sentence(tmp_path, monkeypatch):
    """As one built for a later version would: RegisterCustomOps returns a status."""

    def refuse(self: object, path: str) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : doge: onnxruntime 1.16 is too old.")

    monkeypatch.setattr(onnxruntime.SessionOptions, "register_custom_ops_library", refuse)
    with pytest.raises(DogeExportError, match=r"doge: onnxruntime 1\.16 is too old"):
        Session.open(write_toy_bundle(tmp_path))
