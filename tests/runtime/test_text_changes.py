"""Settings whose effect changes with every token, beside what Python makes of all logits."""

from typing import Any

import pytest

from doge_export.runtime import GenerationOptions, Session, stream
from doge_export.runtime.generation import stream_alone
from doge_export.runtime.scheduling import can_be_pooled
from doge_export.runtime.text_changes import change_with_text


@pytest.fixture(scope="module")
def session(exported: Any) -> Session:
    return Session.open(exported({}, keep_window_size=16)[1], threads=1)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_penalty": 1.3},
        {"presence_penalty": -9.0, "frequency_penalty": 2.0},
        {"min_new_tokens": 12},
        {"min_length": 9, "suppress_tokens": (5, 6)},
        {"min_new_tokens": 4, "presence_penalty": 0.5, "top_k": 20},
    ],
    ids=str,
)
def test_the_kernels_do_what_python_does(
    session: Session, changes: dict[str, Any], temperature: float
) -> None:
    """One prompt, and several side by side, of which some have ended before."""
    options = GenerationOptions(
        max_new_tokens=30, temperature=temperature, seed=2, eos_token_ids=tuple(range(40, 257, 3)), **changes
    )
    assert change_with_text(options) and can_be_pooled(session, options)
    prompts = [[3, 4, 5], [7, 8], [9, 10, 11, 12, 13, 14]]
    for asked in (prompts[:1], prompts):
        expected = list(stream_alone(session, asked, options))
        made = list(stream(session, asked, options))
        assert sorted(made, key=lambda event: event.row) == sorted(expected, key=lambda event: event.row)
    ended = [event for event in expected if event.finish_reason == "eos"]
    assert ended or "min_new_tokens" not in changes


@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_penalty": 0.5, "repetition_penalty": 1.1},
        {"presence_penalty": 0.5, "sequence_bias": (((5,), 1.0),)},
        {"presence_penalty": 11.0},
    ],
    ids=str,
)
def test_what_rounds_otherwise_is_pythons(session: Session, changes: dict[str, Any]) -> None:
    assert not can_be_pooled(session, GenerationOptions(**changes))
