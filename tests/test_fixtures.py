"""The trained fixtures: greedy text and every choice of keys and experts equal to the reference's."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate import evaluate_text
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.metrics import Selection
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

FIXTURES = ["doge-tiny", "doge-tiny-moe"]


@cache
def heldout() -> str:
    return (presets.models_folder() / "heldout.txt").read_text(encoding="utf-8")


def prompts(tokenizer: Tokenizer, shortest: int, step: int) -> list[list[int]]:
    """Twenty prompts from all over the held-out text, each `step` tokens longer than the one before."""
    text = heldout()
    starts = [len(text) * index // 20 for index in range(20)]
    return [
        tokenizer.encode(text[start : start + 2000])[: shortest + step * index]
        for index, start in enumerate(starts)
    ]


@pytest.fixture(scope="module", params=FIXTURES)
def fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    output = tmp_path_factory.mktemp("fixture") / request.param
    exported = export_model(request.param, output, ExportOptions.resolve())
    assert exported.report is not None
    assert exported.report.passed
    return presets.models_folder() / request.param, exported.bundle


def continuations(
    fixture: tuple[Path, Bundle], shortest: int, step: int, new_tokens: int, every: int = 1
) -> Iterator[tuple[Run, Run, Selection]]:
    """Greedy continuations of the twenty prompts, or `every` so many of them, held to the reference's text.

    The reference goes along the same ids. If each of its argmaxes is the next id, its own greedy text is
    the same text.
    """
    folder, bundle = fixture
    tokenizer = Tokenizer.load(bundle.path)
    reference, candidate = Reference(folder), FunctionBodies(bundle)
    session = Session.open(bundle, threads=1)
    options = GenerationOptions(temperature=0.0, max_new_tokens=new_tokens, eos_token_ids=())
    for prompt in prompts(tokenizer, shortest, step)[::every]:
        (completion,) = generate(session, [prompt], options).completions
        new = list(completion.ids)
        assert len(new) == new_tokens
        ids = np.array([[*prompt, *new[:-1]]])
        tokens = Tokens(ids, np.ones_like(ids), np.arange(ids.shape[1])[None])
        schedule = Schedule("greedy", (len(prompt), *[1] * (new_tokens - 1)))
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        assert expected.logits[0, len(prompt) - 1 :].argmax(-1).tolist() == new
        yield expected, got, compare_selection(expected, got, tokens, schedule.steps)


def test_400_greedy_tokens_and_every_choice_are_the_reference(fixture: tuple[Path, Bundle]) -> None:
    """20 tokens after each of 20 prompts of 100 to 252 tokens, most of them beyond the window of 128."""
    tied = 0
    for expected, got, selection in continuations(fixture, shortest=100, step=8, new_tokens=20):
        assert selection.share == 1.0
        assert np.abs(expected.logits - got.logits).max() <= 1e-4
        tied += expected.ties.tied
    assert tied > 500


def test_400_greedy_tokens_after_each_prompt(fixture: tuple[Path, Bundle]) -> None:
    """After three of them, the same text all the way. Keys may change places only where dt differs by its
    last bits.

    Greedy text of a small model runs in circles, whose states draw ever closer: among 100,000 sets a
    pair one rounding apart does come up.
    """
    changed, rows = 0, 0
    for expected, got, selection in continuations(fixture, shortest=8, step=3, new_tokens=400, every=7):
        assert selection.widest <= 5e-7
        if selection.same == selection.rows:
            assert np.abs(expected.logits - got.logits).max() <= 1e-4
        changed, rows = changed + selection.rows - selection.same, rows + selection.rows
    assert changed <= rows * 1e-4


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("bounded") / "bundle"
    return export_model("doge-tiny", output, ExportOptions.resolve(kv_cache="bounded"), validate=False).bundle


def test_ten_windows_with_a_bounded_cache(bounded: Bundle) -> None:
    """1,280 steps of held-out text, and five windows in chunks; plain and on the kernels. Beyond 512 tokens
    the rope turns by a power that torch and onnxruntime round differently, with any cache: 7e-5 at 1,200."""
    ids = np.array([Tokenizer.load(bounded.path).encode(heldout()[:12000])])
    reference, candidate, kernels = (
        Reference(presets.models_folder() / "doge-tiny"),
        FunctionBodies(bounded),
        Kernels(bounded),
    )
    for steps in ([1] * 1280, (100, 128, 250, 1, 2, 159)):
        length = sum(steps)
        part = ids[:, :length]
        tokens = Tokens(part, np.ones_like(part), np.arange(length)[None])
        schedule = Schedule("held-out text", tuple(steps))
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        selection = compare_selection(expected, got, tokens, schedule.steps)
        assert expected.ties.tied > 10 and selection.share == 1.0
        assert np.abs(expected.logits - got.logits).max() <= 1e-4
        assert np.abs(expected.logits - kernels.run(schedule, tokens).logits).max() <= 1e-4
        assert kernels.decode is not None
        best = kernels.decode.run(schedule, tokens).best
        assert best is not None
        ends = np.cumsum(steps) - 1
        assert (best.ids == expected.logits[:, ends].argmax(-1)).all()


def test_perplexity_with_a_bounded_cache(fixture: tuple[Path, Bundle], bounded: Bundle) -> None:
    """Of 3,000 tokens in one window, which a growing cache reads in one call and a bounded one in pieces."""
    if fixture[1].config.is_moe:
        pytest.skip("mixing experts have no bounded cache")
    tokenizer = Tokenizer.load(bounded.path)
    growing, other = (
        evaluate_text(Session.open(bundle), tokenizer, heldout(), window=3000, stride=2999, limit=3000)
        for bundle in (fixture[1], bounded)
    )
    assert other.perplexity == pytest.approx(growing.perplexity, rel=1e-6)


@pytest.mark.parametrize("name", FIXTURES)
def test_config_is_what_the_card_says(name: str) -> None:
    config = json.loads((presets.models_folder() / name / "config.json").read_text())
    assert config["keep_window_size"] == 128
    assert config["max_position_embeddings"] == 512
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["rope_parameters"]["rope_type"] == "dynamic"
    assert config["is_moe"] is (name == "doge-tiny-moe")
