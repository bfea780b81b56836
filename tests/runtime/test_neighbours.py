"""A text does not depend on its neighbours: rows share calls only where each is what it is alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import Completion, GenerationDefaults, GenerationOptions, Session, generate, stream
from doge_export.runtime.decoder import TokenDecoder
from doge_export.runtime.neighbours import reads_in_pieces, rows_are_independent
from doge_export.runtime.onnx_session import OnnxSession
from doge_export.runtime.slot_pool import SlotPool
from tests.generations._checkpoints import make

TEXTS = [
    "My fellow citizens",
    "We the people of the United States, in order to form",
    "The",
    "The President and the Congress",
]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
LONGROPE |= {"factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0, 3.0] * 4}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """doge-tiny-moe, whose router mixes the tokens of a call."""
    output = tmp_path_factory.mktemp("trained") / "moe"
    return export_model("doge-tiny-moe", output, ExportOptions.resolve(), validate=False).bundle


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 257, length).tolist() for length in lengths]


def alone(session: Session, given: list[list[int]], options: GenerationOptions, **more: Any) -> list[Any]:
    """Each as the only prompt; those that draw, in their place among prompts of one token."""
    if options.greedy:
        return [generate(session, [each], options, **more).completions[0] for each in given]
    rows = ([*[[5]] * row, each] for row, each in enumerate(given))
    return [generate(session, row, options, **more).completions[-1] for row in rows]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 40, "seed": 5},
        {"temperature": 1.2, "seed": 5},
        {"temperature": 0.0, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_prompts_of_a_model_that_mixes(trained: Bundle, native: bool, changes: dict[str, Any]) -> None:
    session, tokenizer = Session.open(trained, threads=1, native=native), Tokenizer.load(trained.path)
    options = GenerationDefaults.of(trained).changed(max_new_tokens=16, **changes)
    given = [tokenizer.encode(text) for text in TEXTS]
    assert len(set(map(len, given))) == len(given)
    found = generate(session, given, options, tokenizer).completions
    assert found == alone(session, given, options, tokenizer=tokenizer)
    assert len({completion.text for completion in found}) == len(given)


def test_copies_of_a_model_that_mixes(trained: Bundle) -> None:
    session, tokenizer = Session.open(trained, threads=1), Tokenizer.load(trained.path)
    given = [tokenizer.encode(TEXTS[1])] * 3
    greedy = generate(session, given, GenerationOptions(max_new_tokens=16)).completions
    assert greedy == alone(session, given[:1], GenerationOptions(max_new_tokens=16)) * 3
    drawn = GenerationOptions(max_new_tokens=16, temperature=1.0, top_k=40, seed=5)
    found = generate(session, given, drawn).completions
    assert len({tuple(completion.ids) for completion in found}) == 3
    assert found[:1] == generate(session, given[:1], drawn).completions


def test_rows_take_turns(trained: Bundle) -> None:
    """As those of one call do: a row that has ended is left out, and the others go on."""
    session, tokenizer = Session.open(trained, threads=1), Tokenizer.load(trained.path)
    given = [tokenizer.encode(text) for text in TEXTS[:3]]
    options = GenerationOptions(max_new_tokens=6)
    texts = alone(session, given, options)
    end = texts[1].ids[2]
    lengths = [min(6, [*each.ids, end].index(end) + 1) for each in texts]
    events = list(stream(session, given, GenerationOptions(max_new_tokens=6, eos_token_ids=(end,))))
    wanted = [(row, texts[row].ids[at]) for at in range(6) for row in range(3) if at < lengths[row]]
    assert [(event.row, event.token) for event in events] == wanted
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("generation, moe", [("1", True), ("2", False), ("3a", False), ("3b", True)])
def test_earlier_generations(generation: str, moe: bool, tmp_path: Path) -> None:
    """What their queries see depends on padding; of one length there is none."""
    folder = make(tmp_path / "c", generation, moe)
    resolved = ExportOptions.resolve(generation=generation)
    bundle = export_model(str(folder), tmp_path / "b", resolved, validate=False).bundle
    session, options = Session.open(bundle, threads=1), GenerationOptions(max_new_tokens=14)
    for given in (prompts(3, 14, 9, 5), prompts(9, 9, 9)):
        assert generate(session, given, options).completions == alone(session, given, options)
    assert not rows_are_independent(bundle, (3, 5), 8)
    assert rows_are_independent(bundle, (9, 9), 99) == (not bundle.config.mixes("reference"))
    assert not reads_in_pieces(bundle, 2)


@pytest.mark.parametrize("options", [{}, {"kv_cache": "bounded"}], ids=["growing", "bounded"])
@pytest.mark.parametrize("rope", [None, LONGROPE, DEFAULT], ids=["dynamic", "longrope", "default"])
def test_ropes_that_turn_by_the_longest_position(exported: Any, rope: Any, options: dict[str, str]) -> None:
    """One row's length would turn the others: beyond the limit, 24 and 16, each goes alone."""
    bundle = exported(options, **({} if rope is None else {"rope_parameters": rope}))[1]
    session, asked = Session.open(bundle, threads=1), GenerationOptions(max_new_tokens=14)
    for seed in range(3):
        given = prompts(20, 30, 5, 3, seed=seed)
        assert generate(session, given, asked).completions == alone(session, given, asked)
    limit = bundle.config.rope_limit
    assert limit == {None: 24, "longrope": 16, "default": None}[rope and rope["rope_type"]]
    assert rows_are_independent(bundle, (9, 3), 16)
    assert rows_are_independent(bundle, (9, 3), 25) == (limit is None)
    assert rows_are_independent(bundle, (9, 9), 25)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of input_ids of every call; of a pool's, how many rows and tokens are in it."""
    found: list[tuple[int, ...]] = []
    for kind in (OnnxSession, TokenDecoder):
        step = kind.step

        def counted(self: Any, input_ids: Any, *given: Any, step: Any = step, **more: Any) -> Any:
            found.append(input_ids.shape)
            return step(self, input_ids, *given, **more)

        monkeypatch.setattr(kind, "step", counted)
    pooled = SlotPool.step

    def counted_rows(self: Any, rows: Any, *given: Any, **more: Any) -> Any:
        found.append((len(rows), sum(map(len, rows.values()))))
        return pooled(self, rows, *given, **more)

    monkeypatch.setattr(SlotPool, "step", counted_rows)
    yield found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(3, 14), (3, 3), (3, 3), (3, 3)]),  # all but the last tokens of the prompts, then those
        ({"temperature": 2.0, "seed": 1}, [(3, 14), (3, 3), (3, 3), (3, 3)]),
        ({"temperature": 2.0, "seed": 1, "typical_p": 0.9}, [(3, 9), (3, 1), (3, 1), (3, 1)]),
    ],
    ids=["greedy", "drawn", "all logits"],
)
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "per-token"])
def test_what_is_independent_shares_its_calls(
    exported: Any,
    calls: list[tuple[int, ...]],
    moe: bool,
    changes: dict[str, Any],
    expected: list[tuple[int, int]],
) -> None:
    bundle = exported({"routing": "per-token"}, is_moe=moe)[1]
    session = Session.open(bundle, threads=1)
    generate(session, prompts(9, 3, 5), GenerationOptions(max_new_tokens=4, **changes))
    assert calls[: len(expected)] == expected[: len(calls)] and {rows for rows, _ in calls} == {3}


def test_a_short_row_is_as_long_as_alone(exported: Any, calls: list[tuple[int, ...]]) -> None:
    """Padding takes slots of a static cache: next to a long prompt there would be fewer for a short one."""
    options = {"kv_cache": "static", "max_length": 40}
    bundle = exported(options, sliding_window=14, rope_parameters=DEFAULT)[1]
    session, asked = Session.open(bundle, threads=1), GenerationOptions()
    given = prompts(30, 4)
    found: list[Completion] = generate(session, given, asked).completions
    assert [len(each.ids) for each in found] == [11, 37]
    assert found == alone(session, given, asked)
    calls.clear()
    generate(session, given, GenerationOptions(max_new_tokens=11))
    assert calls[0] == (2, 29 + 3)


def test_what_does_not_fit_shows_before_the_first_token(exported: Any) -> None:
    bundle = exported({"kv_cache": "static", "max_length": 40}, is_moe=True)[1]
    session = Session.open(bundle, threads=1)
    with pytest.raises(DogeExportError, match="prompt has 41 tokens"):
        next(stream(session, prompts(3, 41), GenerationOptions(max_new_tokens=1)))
