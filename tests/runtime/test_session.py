"""Loading a bundle and stepping through it with each kind of cache."""

import json

import numpy as np
import onnx
import pytest

from doge_export.core.bundle import MANIFEST, Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime import Session
from tests.runtime._toy import VOCAB, next_token, toy_model, write_toy_bundle

KINDS = ("growing", "static")
DTYPES = ("float32", "float16", "bfloat16")


def _mask(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def _run(session: Session, ids: np.ndarray, mask: np.ndarray, schedule: list[int]) -> np.ndarray:
    """Logits of all steps, the tokens taken in pieces of the lengths in `schedule`."""
    cache = session.new_cache(len(ids))
    positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
    pieces, at = [], 0
    for count in schedule:
        here = slice(at, at + count)
        logits, cache = session.step(ids[:, here], mask[:, : at + count], positions[:, here], cache)
        pieces.append(logits)
        at += count
        assert cache.length == at
    return np.concatenate(pieces, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", [[6], [1] * 6, [4, 1, 1], [2, 3, 1]], ids=str)
def test_every_schedule_gives_the_model_s_logits(tmp_path, kind, dtype, schedule):
    session = Session.open(write_toy_bundle(tmp_path, kind, dtype), threads=1)
    ids = np.array([[0, 5, 9, 77, 3, 120]])
    logits = _run(session, ids, np.ones_like(ids), schedule)
    assert logits.dtype == np.float32
    assert logits.shape == (1, 6, VOCAB)
    expected = [next_token(ids[0, : end + 1].tolist()) for end in range(6)]
    assert logits[0].argmax(axis=-1).tolist() == expected
    if dtype == "float32":
        distance = np.abs(np.arange(VOCAB)[None] - np.array(expected)[:, None])
        np.testing.assert_array_equal(logits[0], -1 - distance.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_left_padding_are_as_if_alone(tmp_path, kind):
    session = Session.open(write_toy_bundle(tmp_path, kind))
    ids = np.array([[0, 5, 9, 7, 8], [2, 2, 0, 11, 12]])
    mask = _mask([1, 1, 1, 1, 1], [0, 0, 1, 1, 1])
    logits = _run(session, ids, mask, [4, 1])
    assert logits[0, -1].argmax() == next_token([0, 5, 9, 7, 8])
    assert logits[1, -1].argmax() == next_token([0, 11, 12])
    assert logits[1, -2].argmax() == next_token([0, 11])


@pytest.mark.parametrize("kind", KINDS)
def test_one_session_serves_conversations_side_by_side(tmp_path, kind):
    session = Session.open(write_toy_bundle(tmp_path, kind))
    rows = [[4, 8, 15, 16], [23, 42, 1, 2]]
    caches = [session.new_cache(1) for _ in rows]
    for position in range(4):
        for row, ids in enumerate(rows):
            logits, caches[row] = session.step(
                _mask([ids[position]]), _mask([1] * (position + 1)), _mask([position]), caches[row]
            )
            assert logits[0, -1].argmax() == next_token(ids[: position + 1])


def test_a_static_cache_says_when_it_is_full(tmp_path):
    session = Session.open(write_toy_bundle(tmp_path, "static", max_length=4))
    cache = session.new_cache(1)
    assert cache.capacity == 4
    _, cache = session.step(_mask([1, 2, 3]), _mask([1] * 3), _mask([0, 1, 2]), cache)
    _, full = session.step(_mask([4]), _mask([1] * 4), _mask([3]), cache)
    with pytest.raises(DogeExportError, match=r"holds 4 tokens, and this needs 5.*--max-length 5"):
        session.step(_mask([5]), _mask([1] * 5), _mask([4]), full)


def test_wrong_shapes_are_a_caller_s_bug(tmp_path):
    session = Session.open(write_toy_bundle(tmp_path))
    with pytest.raises(ValueError, match="attention_mask"):
        session.step(_mask([1, 2]), _mask([1]), _mask([0, 1]), session.new_cache(1))
    with pytest.raises(ValueError, match="position_ids"):
        session.step(_mask([1, 2]), _mask([1, 1]), _mask([0]), session.new_cache(1))


def test_threads_must_be_positive_and_reach_onnxruntime(tmp_path):
    session = Session.open(write_toy_bundle(tmp_path), threads=3)
    (loaded,) = session._loaded.values()
    graph = loaded.session
    assert graph.get_session_options().intra_op_num_threads == 3
    for wrong in (0, 1025, 10**11):
        with pytest.raises(DogeExportError, match=f"{wrong} threads .* Give 1 to 1024"):
            Session.open(write_toy_bundle(tmp_path), threads=wrong)


def test_a_damaged_graph_is_one_sentence(tmp_path):
    bundle = write_toy_bundle(tmp_path)
    bundle.model_path.write_bytes(bundle.model_path.read_bytes()[:1000])
    with pytest.raises(DogeExportError, match=r"cannot load .*model\.onnx") as raised:
        Session.open(bundle)
    assert "\n" not in str(raised.value)


def test_a_graph_that_the_cpu_cannot_run_names_the_export_s_options(tmp_path):
    model = toy_model()
    next(node for node in model.graph.node if node.op_type == "CumSum").domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(DogeExportError, match=r"cannot load .*nowhere"):
        Session.open(write_toy_bundle(tmp_path, model=model))


def test_another_graph_than_the_manifest_s_is_noticed(tmp_path):
    bundle = write_toy_bundle(tmp_path)
    onnx.save(toy_model("static"), bundle.model_path)
    with pytest.raises(DogeExportError, match=r"inputs differ by cache_position, past_key_values\.0\.dt"):
        Session.open(bundle)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw["cache"].update(kind="round"), "kind 'round'"),
        (lambda raw: raw["cache"].update(inputs=["past_key_values.9.key"]), r"no past_key_values\.9\.key"),
        (lambda raw: raw["graph"]["outputs"][0].update(dtype="float8"), "logits is float8"),
    ],
    ids=["kind", "name", "dtype"],
)
def test_a_cache_that_cannot_be_run_is_one_sentence(tmp_path, change, sentence):
    write_toy_bundle(tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    change(raw)
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DogeExportError, match=sentence):
        Session.open(Bundle.open(tmp_path)).new_cache(1)


def test_a_static_cache_needs_its_length(tmp_path):
    write_toy_bundle(tmp_path, "static")
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["cache"]["max_length"] = None
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DogeExportError, match="no max_length"):
        Session.open(Bundle.open(tmp_path)).new_cache(1)
