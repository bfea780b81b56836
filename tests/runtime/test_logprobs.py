"""Log-probabilities beside the tokens: transformers' own, whatever the options do to the choice."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.runtime import Event, GenerationOptions, Session, calls, stream
from doge_export.runtime.logprobs import token_logprobs

#: Within keep_window_size with what is made: beyond it a call of several tokens sees others than single ones.
PROMPTS = [[5, 6, 7, 5, 9, 30], [11, 12, 13], [40]]
CHANGED: dict[str, Any] = {
    "temperature": 1.3,
    "top_k": 20,
    "seed": 3,
    "repetition_penalty": 1.4,
    "presence_penalty": 0.5,
    "sequence_bias": (((8,), 2.0),),
}


def _theirs(checkpoint: Path, ids: list[int]) -> Any:
    """[position, vocab], of what comes after each token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def _events(session: Session, row: int, options: GenerationOptions) -> list[Event]:
    return [event for event in stream(session, PROMPTS, options) if event.row == row]


@pytest.mark.parametrize("changes", [{}, CHANGED], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    "options", [{}, {"kv_cache": "static", "max_length": 60}, {"kv_cache": "bounded"}], ids=str
)
def test_they_are_transformers(
    exported: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Of a batch with padding; a bounded cache reads the prompts in pieces."""
    monkeypatch.setattr(calls, "_PIECE", 4)
    checkpoint, bundle = exported(options)
    session = Session.open(bundle, threads=1)
    plain = GenerationOptions(max_new_tokens=6, **changes)
    asked = GenerationOptions(max_new_tokens=6, logprobs=3, prompt_logprobs=True, **changes)
    for row, prompt in enumerate(PROMPTS):
        events = _events(session, row, asked)
        new = [event.token for event in events]
        assert new == [event.token for event in _events(session, row, plain)]
        theirs = _theirs(checkpoint, [*prompt, *new])
        assert [event.prompt_logprobs for event in events[1:]] == [None] * 5
        found = [*(events[0].prompt_logprobs or ()), *(event.logprobs for event in events)]
        assert len(found) == len(prompt) + 5
        for at, (each, token) in enumerate(zip(found, [*prompt[1:], *new], strict=True)):
            assert each is not None and each.logprob == pytest.approx(theirs[at, token], abs=2e-4)
            best = np.argsort(-theirs[at], kind="stable")[:3]
            assert [value for _, value in each.best] == pytest.approx(theirs[at, best].tolist(), abs=2e-4)
            assert [theirs[at, token] for token, _ in each.best] == pytest.approx(
                [value for _, value in each.best], abs=2e-4
            )


def test_a_long_prompt_can_be_given_up_while_it_is_scored(exported: Any) -> None:
    class Left(Exception):
        pass

    told: list[int] = []

    def leave(tokens: int) -> None:
        told.append(tokens)
        if len(told) == 3:
            raise Left

    session = Session.open(exported()[1], threads=1)
    options = GenerationOptions(max_new_tokens=2, logprobs=0, prompt_logprobs=True)
    with pytest.raises(Left):
        next(stream(session, [list(range(3, 11))], options, on_prompt=leave))
    assert told == [0, 0, 0]


def test_without_being_asked_for_there_are_none(exported: Any) -> None:
    session = Session.open(exported()[1], threads=1)
    events = _events(session, 0, GenerationOptions(max_new_tokens=3))
    assert [(event.logprobs, event.prompt_logprobs) for event in events] == [(None, None)] * 3


def test_the_sum_is_of_the_whole_vocabulary_and_equals_stand_by_their_ids() -> None:
    logits = np.random.default_rng(0).normal(0, 40, 5000).astype(np.float32)
    logits[[7, 9, 4000]] = logits.max() + 1
    logits[3] = -np.inf
    total = math.log(math.fsum(math.exp(float(each) - float(logits.max())) for each in logits))
    found = token_logprobs(logits, 3, 5)
    assert found.logprob == -math.inf
    assert [token for token, _ in found.best[:3]] == [7, 9, 4000]
    assert found.best[0][1] == pytest.approx(-total, rel=1e-14)
    assert token_logprobs(logits, 7, 0).best == ()
    assert len(token_logprobs(logits, 7, 10**6).best) == 5000


def test_values_that_are_no_numbers_are_those_that_replace_them(exported: Any) -> None:
    """-inf and NaN among logits, where remove_invalid_values asks for a text all the same."""
    bundle = exported()[1]
    session = Session.open(bundle, threads=1)
    step = type(session).step

    def damaged(*args: Any, **kwargs: Any) -> Any:
        logits, cache = step(*args, **kwargs)
        logits = logits.copy()
        logits[..., 3], logits[..., 4] = np.nan, -np.inf
        return logits, cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(session), "step", damaged)
        options = GenerationOptions(
            max_new_tokens=2, remove_invalid_values=True, logprobs=1, prompt_logprobs=True
        )
        events = list(stream(session, [[5, 3, 9]], options))
    values = [*(events[0].prompt_logprobs or ()), events[0].logprobs]
    assert len(values) == 3 and all(each is not None and math.isfinite(each.logprob) for each in values)
