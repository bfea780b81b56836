"""Rows that come and go: each is to the bit what it is alone, fed token by token, and so is its cache."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from doge_export.runtime import Session, pool_sizes, slot_pool
from doge_export.runtime.slot_checkpoint import LowKeys
from doge_export.runtime.slot_pool import SlotPool

VOCAB = 257
SLIDING = {"sliding_window": 14}  # decode.onnx of a growing cache is static then
CASES = {
    "growing": ({}, SLIDING),
    "growing, experts": ({"routing": "per-token"}, {**SLIDING, "is_moe": True}),
    "static, float16": ({"kv_cache": "static", "max_length": 60, "dtype": "float16"}, {}),
    "static, int4": ({"kv_cache": "static", "max_length": 60, "precision": "int4"}, {}),
    "bounded": ({}, {"keep_window_size": 16}),
    "bounded, int8, experts": (
        {"precision": "int8", "routing": "per-token"},
        {"keep_window_size": 12, "is_moe": True},
    ),
    "bounded, float16": ({"dtype": "float16"}, {"keep_window_size": 20}),
}


class Alone:
    """A row by itself, in a pool of its own. `length`: what its text is said to have, since the rope depends
    on that; rows differ."""

    def __init__(self, session: Session, length: int) -> None:
        self.pool, self.length = session.pool(1), length
        self.slot = self.pool.open()

    def read(self, tokens: list[int]) -> tuple[Any, Any]:
        """Token by token; the best tokens after each, and their logits."""
        told = {self.slot: self.length}
        made = [self.pool.step({self.slot: [token]}, rope_lengths=told)[self.slot] for token in tokens]
        return np.concatenate([ids for ids, _ in made]), np.concatenate([logits for _, logits in made])


def same_cache(pool: SlotPool, slot: int, row: Alone) -> None:
    one, other = pool.snapshot(slot), row.pool.snapshot(row.slot)
    assert one.length == other.length
    for mine, alone in zip(one.parts, other.parts, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), alone.view(np.uint8))


@pytest.fixture(scope="module", params=[(name, threads) for name in CASES for threads in (1, 2)], ids=str)
def session(request: pytest.FixtureRequest, exported: Any) -> Session:
    name, threads = request.param
    options, changes = CASES[name]
    return Session.open(exported(options, **changes)[1], threads=threads)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), calls=st.integers(3, 12))
def test_a_row_is_what_it_is_alone(session: Session, monkeypatch: Any, seed: int, calls: int) -> None:
    monkeypatch.setattr(pool_sizes, "_KEYS", 8)  # the number of keys has to grow
    rng = np.random.default_rng(seed)
    pool, rows, away = session.pool(2), {}, []
    most = session.bundle.manifest.decode.cache.max_length or 90

    def tokens(count: int) -> list[int]:
        return rng.integers(3, VOCAB, count).tolist()

    for _ in range(calls):
        if not rows or (len(rows) < 5 and rng.random() < 0.5):
            rows[pool.open()] = Alone(session, int(rng.integers(100, 400)))
        if len(rows) < 6 and rng.random() < 0.2:
            slot = int(rng.choice(list(rows)))
            twin = Alone(session, rows[slot].length)
            twin.slot = twin.pool.restore(rows[slot].pool.snapshot(rows[slot].slot), twin.slot)
            rows[pool.fork(slot)] = twin
        if len(rows) > 1 and rng.random() < 0.2:
            slot = int(rng.choice(list(rows)))
            away.append((pool.evict(slot), rows.pop(slot)))
        if away and rng.random() < 0.4:
            saved, row = away.pop()
            rows[pool.restore(saved)] = row
        if len(rows) > 1 and rng.random() < 0.1:
            slot = int(rng.choice(list(rows)))
            pool.close(slot)
            del rows[slot]
        call, every = {}, []
        for slot in rng.permutation(list(rows))[: rng.integers(1, len(rows) + 1)].tolist():
            count = 1 if rng.random() < 0.4 else int(rng.integers(1, 30))
            if count := min(count, most - pool.rows[slot] - 4):
                call[slot] = tokens(count) if count > 0 else []
                if rng.random() < 0.4:
                    every.append(slot)
        call = {slot: given for slot, given in call.items() if given}
        every = [slot for slot in every if slot in call]
        if not call:
            continue
        steps = int(rng.choice([1, 1, 3])) if not every else 1
        before = {slot: pool.snapshot(slot) for slot in every}
        told = {slot: row.length for slot, row in rows.items()}
        got = pool.step(call, steps=steps, every=every, rope_lengths=told)
        for slot, given_tokens in call.items():
            row, (ids, logits) = rows[slot], got[slot]
            expected_ids, expected = row.read(given_tokens)
            if steps > 1:
                made = expected_ids[-1:, 0].tolist()
                best = [expected[-1:, :1]]
                for _ in range(steps - 1):
                    more_ids, more = row.read(made[-1:])
                    made.append(int(more_ids[0, 0]))
                    best.append(more[:, :1])
                expected_ids, expected = np.array(made)[:, None], np.concatenate(best)
            elif slot not in every:
                expected_ids, expected = expected_ids[-1:], expected[-1:]
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))
            same_cache(pool, slot, row)
            if (
                slot in every and len(given_tokens) > 1 and rng.random() < 0.7
            ):  # a part of the draft is not taken
                keep = int(rng.integers(1, len(given_tokens)))
                try:
                    pool.rewind(slot, len(given_tokens) - keep)
                except DogeExportError:
                    pool.restore(before[slot], slot)
                    pool.step({slot: given_tokens[:keep]}, rope_lengths=told)
                twin = Alone(session, row.length)
                twin.slot = twin.pool.restore(before[slot], twin.slot)
                twin.read(given_tokens[:keep])
                rows[slot] = twin
                same_cache(pool, slot, twin)


@pytest.fixture(scope="module")
def fixed(exported: Any) -> Session:
    return Session.open(exported({"kv_cache": "static", "max_length": 60})[1], threads=1)


def test_what_is_refused_changes_nothing(fixed: Session) -> None:
    pool = fixed.pool(2)
    one, other = pool.open(), pool.open()
    pool.step({one: [5, 6, 7], other: [8]})
    before = [pool.snapshot(slot) for slot in (one, other)]
    for call, sentence in (
        ({one: [5], 7: [6]}, "no row in slot 7"),
        ({one: [5], other: []}, "no token to read"),
        ({one: [5, VOCAB], other: [6]}, "vocabulary"),
        ({one: [5, -1]}, "vocabulary"),
        ({one: [5], other: [6] * 60}, "holds 60 tokens, and this needs 61"),
    ):
        with pytest.raises(DogeExportError, match=sentence):
            pool.step(call)
    with pytest.raises(DogeExportError, match="has read 3 tokens"):
        pool.rewind(one, 4)
    with pytest.raises(DogeExportError, match="2 steps"):
        pool.step({one: [5]}, steps=2, every=[one])
    assert pool.rows == {one: 3, other: 1}
    for slot, saved in zip((one, other), before, strict=True):
        for mine, part in zip(pool.snapshot(slot).parts, saved.parts, strict=True):
            np.testing.assert_array_equal(mine, part)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slots": [0, 2]}, "slots has 2, and the pool has 2 slots"),
        ({"slots": [0, -1]}, "slots has -1, and the pool"),
        ({"slots": [1, 1]}, "slots has 1 twice"),
        ({"slots": [1]}, r"slots has the shape \[1\]"),
        ({"offsets": [0, 2, 4]}, "offsets go from 0 to 4, and the call has the tokens from 0 to 3"),
        ({"offsets": [1, 2, 3]}, "offsets go from 1 to 3"),
        ({"offsets": [0, 3, 3]}, "offsets give row 1 the tokens from 3 to 3"),
        ({"offsets": [0, 5, 3]}, "offsets give row 0 the tokens from 0 to 5"),
        ({"wanted": [3]}, "wanted has 3, and the call has 3 tokens"),
        ({"ids": [[5, VOCAB, 6]]}, f"token id {VOCAB} is outside"),
        ({"places": [0, 59]}, "2 tokens and 0 more from slot 59"),
        ({"places": [-1, 0]}, "1 tokens and 0 more from slot -1"),
        ({"rope": [1]}, r"rope_lengths has the shape \[1\]"),
        ({"mask": np.ones((2, 60), np.int64)}, "a ragged call has no padding"),
    ],
    ids=str,
)
def test_the_kernel_refuses(fixed: Session, monkeypatch: Any, changes: dict[str, Any], sentence: str) -> None:
    """What the runtime does not let through, from somebody with a runtime of their own."""
    pool = fixed.pool(2)
    for slot in (pool.open(), pool.open()):
        pool.step({slot: [9, 8, 7]})
    before = [part.copy() for part in pool._parts.values()]
    values = {
        "ids": [[5, 6, 7]],
        "positions": [[3, 3, 4]],
        "places": [3, 3],
        "offsets": [0, 1, 3],
        "slots": [0, 1],
    }
    values |= {"rope": [0, 0], "wanted": []} | changes
    own = slot_pool._Bound

    def bound(binding: Any, *sizes: int) -> Any:
        made = own(binding, *sizes)
        for name, value in values.items():
            setattr(made, name, np.array(value, np.int64))
        return made

    monkeypatch.setattr(slot_pool, "_Bound", bound)
    if "mask" in changes:
        monkeypatch.setattr(pool, "_mask", changes["mask"])
    call = pool._bind(2, 3, 1, len(values["wanted"]), False)
    with pytest.raises(Exception, match=sentence):
        pool._graph.run_with_iobinding(call.binding)
    for part, old in zip(pool._parts.values(), before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_only_the_kernel_takes_a_ragged_call(fixed: Session) -> None:
    """The function body would take the rows for one; it does not run."""
    path, spec = fixed.bundle.decode_path, fixed.bundle.manifest.decode
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sizes = {"batch": 1, "sequence": 3}
    call: dict[str, Any] = {
        tensor.name: np.zeros(
            [sizes.get(str(size), size) for size in tensor.shape],
            np.int64 if tensor.dtype == "int64" else np.float32,
        )
        for tensor in spec.inputs
    }
    call["attention_mask"][:] = 1
    call["steps"] = np.array(1)
    assert plain.run(["token_ids"], call)[0].shape == (1, 1, spec.count)
    with pytest.raises(Exception, match="Reshape"):
        plain.run(["token_ids"], call | {"offsets": np.array([0, 1, 3]), "slots": np.array([0, 1])})


def test_a_full_bounded_cache_cannot_be_rewound(exported: Any) -> None:
    session = Session.open(exported({}, keep_window_size=16)[1], threads=1)
    pool = session.pool(1)
    slot = pool.open()
    pool.step({slot: list(range(3, 19))})
    pool.rewind(slot, 2)
    pool.step({slot: [5, 6, 7]})
    with pytest.raises(DogeExportError, match="cannot be rewound"):
        pool.rewind(slot, 1)


def test_a_full_bounded_cache_goes_back_to_a_checkpoint(session: Session) -> None:
    pool = session.pool(2)
    if (most := pool.sizes.most_keys) is None:
        slot = pool.open()
        pool.step({slot: [5] * 30})
        assert pool.checkpoint(slot, 8) is None
        return
    for number, length in enumerate((most - 9, most - 8, most - 3, most, most + 1, 3 * most)):
        slot = pool.open()
        pool.step({slot: ids(length)})
        for steps in (8, 2, 8):  # what was low once is looked for again
            before, checkpoint = pool.snapshot(slot), pool.checkpoint(slot, steps)
            if length + steps <= most:
                assert checkpoint is None
                continue
            assert checkpoint is not None
            first = pool.step({slot: [9 + number]}, steps=steps)[slot]
            pool.go_back(slot, checkpoint)
            after = pool.snapshot(slot)
            assert pool.rows[slot] == after.length == length
            for mine, part in zip(after.parts, before.parts, strict=True):
                np.testing.assert_array_equal(mine.view(np.uint8), part.view(np.uint8))
            again = pool.step({slot: [9 + number]}, steps=steps)[slot]
            np.testing.assert_array_equal(first[1].view(np.uint32), again[1].view(np.uint32))
            pool.go_back(slot, checkpoint)


def test_keys_that_are_equal_are_not_worth_a_checkpoint() -> None:
    parts = {"dt": np.zeros((2, 1, 1, 100), np.float32)}
    low = LowKeys()
    assert low.checkpoint(parts, ("dt", "float32"), 0, 100, 4) is None
    parts["dt"][:] = np.arange(100)
    parts["dt"][..., 50:53] = 3
    for _ in range(2):
        saved = low.checkpoint(parts, ("dt", "float32"), 0, 100, 4)
        assert saved is not None and {0, 1, 2, 3, 50, 51, 52} <= set(saved.places[2].tolist())
        assert len(saved.places[2]) < 40


def test_bytes_and_slots(fixed: Session) -> None:
    pool = fixed.pool(1)
    one = pool.open()
    assert (pool.slots, pool.bytes_in_use) == (1, 0)
    other = pool.open()
    assert (one, other, pool.slots) == (0, 1, 2)
    pool.step({one: [5] * 30, other: [6] * 30})
    assert pool.bytes_in_use * 2 == pool.bytes
    pool.close(one)
    assert pool.open() == one
    assert pool.bytes_in_use * 4 == pool.bytes


@pytest.mark.parametrize("name", ["growing", "static, float16", "bounded"])
def test_a_pool_keeps_to_its_limit(exported: Any, monkeypatch: Any, name: str) -> None:
    monkeypatch.setattr(pool_sizes, "_KEYS", 8)
    options, changes = CASES[name]
    session = Session.open(exported(options, **changes)[1], threads=1)
    key = session.pool(1).sizes.key_bytes
    assert session.pool(1).bytes == session.pool(1).sizes.bytes(0)
    limit = 125 * key + 7
    pool = session.pool(4, limit)
    assert pool.bytes <= limit
    most = {"growing": 120, "static, float16": 60, "bounded": None}[name]
    assert pool.sizes.most_tokens == most
    long = pool.open()
    told = {long: 100}
    texts = {long: ids(50)}
    pool.step(texts, rope_lengths=told)
    slots = {"growing": 2, "static, float16": 2, "bounded": 7}[name]
    assert [pool.has_room(rows, 56) for rows in (slots, slots + 1)] == [True, False]
    for number in range(1, slots):
        slot = pool.open()
        told[slot], texts[slot] = 100, ids(20 + number)
        pool.step({slot: texts[slot]}, rope_lengths=told)
        assert pool.bytes <= limit
    for slot, text in texts.items():
        alone = Alone(session, 100)
        alone.read(text)
        same_cache(pool, slot, alone)
    for slot in texts:
        pool.close(slot)
    assert pool.has_room(12, 7) == (name != "static, float16")
    for _ in range(12 if name != "static, float16" else 2):  # a pool that was long becomes one of many rows
        pool.open()
    assert pool.bytes <= limit


def ids(count: int) -> list[int]:
    return np.random.default_rng(count).integers(3, VOCAB, count).tolist()


def test_older_bundles_have_no_pool(exported: Any) -> None:
    from dataclasses import replace

    bundle = exported({"kv_cache": "static", "max_length": 60})[1]
    decode = replace(bundle.manifest.decode, ragged=False)
    session = Session.open(replace(bundle, manifest=replace(bundle.manifest, decode=decode)), threads=1)
    assert session.decoder(1).step(np.array([[5]]), np.array([[0]]))[0].shape[0] == 1
    with pytest.raises(DogeExportError, match="older version"):
        session.pool()


def test_a_router_that_mixes_has_no_pool(exported: Any) -> None:
    session = Session.open(exported({"routing": "reference"}, is_moe=True)[1], threads=1)
    with pytest.raises(DogeExportError, match="mixes the tokens"):
        session.pool()
