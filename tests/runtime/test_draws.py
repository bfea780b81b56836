"""Tokens drawn by the kernels: those that numpy draws from all logits, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationOptions, Session, calls, generate, stream, token_strategy
from doge_export.runtime.onnx_session import OnnxSession
from tests.runtime.test_decoder import PROMPTS, _empty_cache, _without_decode, _without_draws


@st.composite
def _drawn(draw):
    """Options that the kernels know, for a vocabulary of 257."""
    ids = st.integers(0, 256)
    return {
        "temperature": draw(st.sampled_from([0.0, 0.001, 0.5, 0.8, 1.0, 3.0, 1000.0])),
        "top_k": draw(st.sampled_from([0, 0, 1, 5, 64, 200, 1000, 10**30])),
        "top_p": draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.0])),
        "min_p": draw(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.3, 0.6])),
        "suppress_tokens": tuple(draw(st.lists(ids, max_size=200))),
        "bad_words_ids": tuple((token,) for token in draw(st.lists(ids, max_size=3))),
        "sequence_bias": tuple(
            ((token,), draw(st.floats(-5, 5))) for token in draw(st.lists(ids, max_size=3))
        ),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Of each precision: all logits in Python, and the kernels on one thread and on two."""
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model
    from tests.conftest import write_checkpoint

    folder, opened = tmp_path_factory.mktemp("drawn"), {}
    checkpoint = write_checkpoint(folder / "checkpoint")
    for precision in ("fp32", "int8", "int4"):
        options = ExportOptions.resolve(precision=precision)
        bundle = export_model(str(checkpoint), folder / precision, options, validate=False).bundle
        kernels = [Session.open(bundle, threads=threads) for threads in (1, 2)]
        opened[precision] = (Session.open(_without_decode(bundle), threads=1), *kernels)
    return opened


@given(
    changes=_drawn(),
    precision=st.sampled_from(["fp32", "int8", "int4"]),
    rows=st.integers(1, 3),
    patience=st.sampled_from([0.0, 1e9]),
)
@settings(max_examples=60, deadline=None)
def test_the_kernels_draw_what_numpy_draws(sessions, changes, precision, rows, patience):
    """Token by token: every head, batches, one and two threads, one or two tokens a call or sixteen."""
    every, *kernels = sessions[precision]
    options = GenerationOptions(max_new_tokens=24, **changes)
    prompts = [[5, 6, 7, 5, 9], [11, 12, 13, 11, 3], [40, 41, 40, 41, 2]][:rows]
    expected = generate(every, prompts, options).completions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "_PATIENCE", patience)
        for session in kernels:
            assert generate(session, prompts, options).completions == expected
            assert list(session._loaded) == [True]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sampling": [[-1, 0, 1, 0, 1]]}, "Row 0: temperature cannot be -1"),
        ({"sampling": [[np.nan, 0, 1, 0, 1]]}, "Row 0: temperature cannot be nan"),
        ({"sampling": [[1, -3, 1, 0, 1]]}, "Row 0: top_k cannot be -3"),
        ({"sampling": [[1, 0, 1.5, 0, 1]]}, "Row 0: top_p cannot be 1.5"),
        ({"sampling": [[1, 0, 1, -0.5, 1]]}, "Row 0: min_p cannot be -0.5"),
        ({"sampling": [[1, 0, 1, 0, 0]]}, "Row 0: repetition_penalty cannot be 0"),
        ({"seen": np.array([[3, 257]])}, "Row 0: it has seen 257, which is no token"),
        ({"allowed": np.zeros((1, 5), np.int64)}, "Row 0: no token is allowed"),
        ({"allowed": np.zeros((1, 4), np.int64)}, "allowed has the shape"),
        ({"logit_bias": np.full((1, 257), np.nan, np.float32)}, "Row 0: a bias cannot be nan"),
        ({"logit_bias": np.zeros((1, 256), np.float32)}, "logit_bias has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_draw_is_one_sentence_and_writes_nothing(exported, change, sentence):
    _, bundle = exported(sliding_window=14)
    cache = _empty_cache(bundle, 1, 9)
    feed = {"input_ids": np.array([[3, 4, 5]]), "position_ids": np.arange(3)[None]}
    feed |= {"attention_mask": np.ones((1, 9), np.int64), "cache_position": np.zeros(1, np.int64)}
    draw = {"sampling": [[1, 0, 1, 0, 1]], "draw_key": [[1, 0]], **change}
    feed |= {"steps": np.array(2), **cache, **draw}
    feed["sampling"], feed["draw_key"] = np.array(feed["sampling"], np.float64), np.array(feed["draw_key"])
    session = Session.open(bundle, threads=1)
    with pytest.raises(Exception, match=f"doge::DecodeTokens: .*{sentence}"):
        session._graph(tokens=True).session.run(None, feed)
    assert not any(array.any() for array in cache.values())


@pytest.mark.parametrize("top_k", [0, 7])
def test_an_older_bundle_gives_the_same_text(exported, top_k):
    _, bundle = exported()
    options = GenerationOptions(max_new_tokens=20, temperature=1.5, top_k=top_k, top_p=0.8, seed=1)
    old, new = Session.open(_without_draws(bundle), threads=1), Session.open(bundle, threads=1)
    assert not old.draws and new.draws
    assert generate(old, PROMPTS, options).completions == generate(new, PROMPTS, options).completions


def test_tokens_before_an_overflow_are_given_out(exported, monkeypatch):
    """Several were made at once, and the third is none; in a bundle that has no pool."""
    monkeypatch.setattr(OnnxSession, "pools", False)
    _, bundle = exported()
    expected = generate(Session.open(bundle, threads=1), PROMPTS[:1], GenerationOptions(max_new_tokens=9))
    asked = []
    look = token_strategy._stream

    def overflows(*args):
        token_ids, logits = look(*args)
        asked.append(logits.shape[1])
        if logits.shape[1] > 2:
            logits = logits.copy()
            logits[:, 2] = -np.inf
        return token_ids, logits

    monkeypatch.setattr(token_strategy, "_stream", overflows)
    monkeypatch.setattr(calls, "_PATIENCE", 1e9)
    given, session = [], Session.open(bundle, threads=1)
    with pytest.raises(DogeExportError, match="is -inf, and no number"):
        for event in stream(session, PROMPTS[:1], GenerationOptions(max_new_tokens=9)):
            given.append(event.token)
    steps = next(at for at, count in enumerate(asked) if count > 2)
    assert given == expected.completions[0].ids[: sum(asked[:steps]) + 2]
