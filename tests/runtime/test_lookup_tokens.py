"""Texts with drafts are those without, greedy and drawn, and drafts do come and are right."""

import random
from pathlib import Path
from typing import Any, ClassVar

import pytest

from doge_export.core.errors import NoNumbersError
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import GenerationOptions, Session, drafts, generate, token_strategy
from doge_export.runtime.drafts import DraftLength, TextIndex
from doge_export.runtime.token_strategy import SeveralTokens

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "growing": ({}, {"sliding_window": 14}),
    "static, float16": ({"kv_cache": "static", "max_length": 90, "dtype": "float16"}, {}),
    "bounded": ({}, {"keep_window_size": 48}),
    "bounded, int8, experts": (
        {"precision": "int8", "routing": "per-token"},
        {"keep_window_size": 48, "is_moe": True},
    ),
}
DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.3, "seed": 5},
    "as the cards": {"temperature": 0.8, "top_p": 0.9, "seed": 7},
    "with a penalty": {"temperature": 0.5, "top_k": 8, "repetition_penalty": 1.3, "seed": 1},
    "biased": {"temperature": 0.5, "sequence_bias": (((7,), 3.0),), "suppress_tokens": (9,), "seed": 2},
}
#: It says itself again, so that there is something to draft from the beginning.
PROMPT = [5, 6, 7, 8, 9, 10, 5, 6, 7]


class Always(DraftLength):
    """Drafts of 1 to 15 tokens, whether they pay or not."""

    calls: ClassVar[list[tuple[int, int]]] = []

    def best(self, most: int) -> int:
        return min(most, 1 + len(self.calls) % 15) if most > 0 else 0

    def drafted(self, length: int, right: int, seconds: float) -> None:
        self.calls.append((length, right))


@pytest.fixture(scope="module", params=CASES)
def session(request: pytest.FixtureRequest, exported: Any) -> Session:
    options, changes = CASES[request.param]
    return Session.open(exported(options, max_position_embeddings=512, **changes)[1], threads=1)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> type[Always]:
    monkeypatch.setattr(Always, "calls", [])
    monkeypatch.setattr(drafts, "DraftLength", Always)
    return Always


def text(session: Session, **options: Any) -> list[int]:
    (completion,) = generate(session, [PROMPT], GenerationOptions(**options)).completions
    return list(completion.ids)


class Told(TextIndex):
    """Drafts what will come, where it is right with a chance of 0.8 a token."""

    will_come: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)

    def draft(self, most: int) -> list[int]:
        after = self.will_come[len(self) :][:most]
        return [token if self._rng.random() < 0.8 else 3 for token in after + [4] * (most - len(after))]


@pytest.mark.parametrize("draw", DRAWS)
def test_the_text_is_the_same(
    session: Session, always: type[Always], monkeypatch: pytest.MonkeyPatch, draw: str
) -> None:
    with monkeypatch.context() as without:
        without.setattr(token_strategy, "LookupTokens", _several)
        plain = text(session, max_new_tokens=80, **DRAWS[draw])
    assert not always.calls
    monkeypatch.setattr(Told, "will_come", PROMPT + plain)
    monkeypatch.setattr(drafts, "TextIndex", Told)
    for count in (80, 7, 1):
        assert text(session, max_new_tokens=count, **DRAWS[draw]) == plain[:count]
    assert any(right > 1 for _, right in always.calls)
    assert any(right < length for length, right in always.calls), "something had to be forgotten"


def test_a_trained_model_says_itself_again(tmp_path: Path, always: type[Always]) -> None:
    """Its greedy text runs in circles, which a draft goes round."""
    bundle = export_model("doge-tiny", tmp_path / "out", ExportOptions.resolve(), validate=False).bundle
    session = Session.open(bundle, threads=1)
    prompt = Tokenizer.load(bundle.path).encode("My fellow citizens")
    options = GenerationOptions(max_new_tokens=100)  # up to the window nothing is lost
    made = [each.ids for each in generate(session, [prompt], options).completions]
    assert sum(right for _, right in always.calls) > 20
    assert made == [each.ids for each in generate(session, [prompt, prompt], options).completions][:1]


def _several(session: Session, read: Any, first: int, draws: Any) -> SeveralTokens:
    return SeveralTokens(session, 1, read, first, draws)


def test_beyond_what_can_be_forgotten_nothing_is_drafted(exported: Any, always: type[Always]) -> None:
    session = Session.open(exported({}, keep_window_size=12, max_position_embeddings=512)[1], threads=1)
    made = text(session, max_new_tokens=60)
    assert len(made) == 60 and sum(length + 1 for length, _ in always.calls) <= 12


def test_no_number_is_said_where_it_is_given_out(
    session: Session, always: type[Always], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = session.pool(1)
    step, calls = type(pool).step, [0]

    def poisoned(self: Any, rows: Any, *others: Any, **named: Any) -> Any:
        results = step(self, rows, *others, **named)
        calls[0] += 1
        if calls[0] == 3:
            for _, logits in results.values():
                logits[:, 0] = float("nan")
        return results

    monkeypatch.setattr(type(pool), "step", poisoned)
    with pytest.raises(NoNumbersError, match="Row 0"):
        text(session, max_new_tokens=60)
