"""Generating on a bounded cache: the texts of a growing one, however the prompt is cut, in constant
memory."""

import logging

import numpy as np
import pytest

from doge_export.runtime import GenerationOptions, Session, calls, generate

WINDOW = 12
KINDS = {"growing": {}, "bounded": {"kv_cache": "bounded"}}
SAMPLED = {"temperature": 2.0, "seed": 3}
OPTIONS = [{}, {**SAMPLED, "top_k": 7}, SAMPLED, {"repetition_penalty": 1.2}]


@pytest.fixture
def pieces(monkeypatch):
    """Prompts are read seven tokens at a time."""
    monkeypatch.setattr(calls, "_PIECE", 7)


def prompts(*lengths):
    rng = np.random.default_rng(7)
    return [rng.integers(3, 257, length).tolist() for length in lengths]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_a_growing_cache(exported, pieces, kind, native, changes):
    """A prompt of five windows, beyond the length at which the rope turns otherwise: the reference reads it
    in one call, and so does the growing graph."""
    options = GenerationOptions(max_new_tokens=30, **changes)
    growing = Session.open(exported(KINDS["growing"])[1], threads=1, native=False)
    session = Session.open(exported(KINDS[kind])[1], threads=1, native=native)
    for given in (prompts(5 * WINDOW), prompts(60, 3, 41)):
        expected = generate(growing, given, options).completions
        assert generate(session, given, options).completions == expected


def test_experts_read_in_pieces(exported, pieces):
    options = GenerationOptions(max_new_tokens=20)
    made = {kind: {**changes, "routing": "per-token"} for kind, changes in KINDS.items()}
    growing = Session.open(exported(made["growing"], is_moe=True)[1], threads=1, native=False)
    expected = generate(growing, prompts(40), options).completions
    for changes in made.values():
        session = Session.open(exported(changes, is_moe=True)[1], threads=1)
        assert session.bundle.manifest.decode.cache.kind == "bounded"
        assert generate(session, prompts(40), options).completions == expected


def test_mixing_experts_are_read_in_one_call(exported, pieces):
    """They are what their call makes them: no bounded cache, and nothing is cut."""
    _, bundle = exported(is_moe=True)
    options, given = GenerationOptions(max_new_tokens=20), prompts(40)
    expected = generate(Session.open(bundle, threads=1, native=False), given, options).completions
    assert generate(Session.open(bundle, threads=1), given, options).completions == expected


def test_the_cache_does_not_grow(exported, pieces):
    session = Session.open(exported()[1], threads=1)
    decoder = session.decoder(2)
    assert decoder.capacity is None and decoder.streams
    sizes = set()
    for at in range(0, 30 * WINDOW, 20):
        positions = np.broadcast_to(np.arange(at, at + 20), (2, 20))
        decoder.step(np.full((2, 20), 5 + at % 7), positions)
        sizes.add(tuple(array.shape[3] for array in decoder._cache.values()))
    assert sizes == {(WINDOW,) * 4}
    held = decoder._cache["past_key_values.position"]
    assert (held >= 0).all()


@pytest.mark.parametrize("native", [True, False])
def test_a_cache_of_all_logits_does_not_grow_either(exported, native):
    session = Session.open(exported(KINDS["bounded"])[1], threads=1, native=native)
    cache = session.new_cache(1)
    assert cache.streams and cache.capacity is None
    for at in range(0, 100, 20):
        ids, positions = np.full((1, 20), 5), np.arange(at, at + 20)[None]
        logits, cache = session.step(ids, np.ones_like(ids), positions, cache)
        assert logits.shape == (1, 20, 257) and cache.length == at + 20
    assert {tuple(value.shape())[2] for value in cache.past} == {WINDOW}
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 120\), not \(1, 20\)"):
        session.step(ids, np.ones((1, 120), np.int64), positions, cache)


def test_one_session_serves_several_conversations(exported, pieces):
    """Buffers are a conversation's own."""
    session = Session.open(exported()[1], threads=1)
    first, second = session.decoder(1), session.decoder(1)
    one, other = (np.array([prompt]) for prompt in prompts(20, 20))
    positions = np.arange(20)[None]
    alone = session.decoder(1)
    expected = alone.step(one, positions)[0].copy()
    first.step(one[:, :10], positions[:, :10])
    second.step(other[:, :10], positions[:, :10])
    got = first.step(one[:, 10:], positions[:, 10:])[0]
    np.testing.assert_array_equal(got[0, 0, 0], expected[0, 0, 0])


@pytest.mark.parametrize("changes", [{}, {**SAMPLED, "top_k": 7}, SAMPLED], ids=str)
def test_reading_is_told_by_the_piece(exported, pieces, changes):
    told, session = [], Session.open(exported(KINDS["bounded"])[1], threads=1)
    options = GenerationOptions(max_new_tokens=2, **changes)
    generate(session, prompts(17), options, on_prompt=told.append)
    assert told == [7, 7], "the last piece ends with a token"


@pytest.mark.parametrize("changes", [{}, {**SAMPLED, "top_k": 7}, SAMPLED], ids=str)
@pytest.mark.parametrize("length, times", [(17, 1), (7, 0)])
def test_memory_is_given_back_after_a_prompt_in_pieces(exported, pieces, monkeypatch, changes, length, times):
    given = []
    monkeypatch.setattr(calls, "release_memory", lambda: given.append(None))
    session = Session.open(exported(KINDS["bounded"])[1], threads=1)
    generate(session, prompts(length), GenerationOptions(max_new_tokens=4, **changes))
    assert len(given) == times


def test_nothing_is_logged(exported, pieces, caplog):
    with caplog.at_level(logging.WARNING):
        generate(
            Session.open(exported(KINDS["bounded"])[1]), prompts(30), GenerationOptions(max_new_tokens=3)
        )
    assert not caplog.records
