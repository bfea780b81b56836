"""`eval --tasks`: lm-eval's questions answered as transformers answers them, and tasks over local files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from doge_export import presets
from doge_export.bundle import Bundle
from doge_export.cli.app import run
from doge_export.errors import DogeExportError
from doge_export.evaluate import perplexity
from doge_export.evaluate.harness import BundleLM
from doge_export.evaluate.perplexity import token_costs
from doge_export.evaluate.tasks import _check
from doge_export.pipeline import export_model
from doge_export.recipe import ExportOptions
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime.reading import read_rows
from doge_export.tokenizer import Tokenizer
from doge_export.validate.pinned import pinned
from tests.generations._checkpoints import make

TEXT = (presets.models_folder() / "heldout.txt").read_text(encoding="utf-8")
#: Contexts of several lengths, one of none, and one beyond the model's 512 tokens; one row is 300 and more.
PAIRS = [
    ("My fellow", " citizens"),
    ("", "The President"),
    ("We the people of the United ", "States"),
    (TEXT[:900], TEXT[900:960]),
    (TEXT[:4000], TEXT[4000:4030]),
    ("Question: what is it?\nAnswer:", " a house"),
]

QUESTIONS = [
    {"question": "My fellow", "choices": ["citizens", "zebra", "of"], "answer": 0},
    {"question": "the United", "choices": ["kettle", "States", "and"], "answer": 1},
    {"question": "the Congress of the United", "choices": ["it", "blue", "States"], "answer": 2},
    {"question": "peace and", "choices": ["the", "prosperity", "xylophone"], "answer": 1},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Bundle] = {}

    def get(name: str) -> Bundle:
        if name not in made:
            output = tmp_path_factory.mktemp("tasks") / "bundle"
            made[name] = export_model(name, output, ExportOptions.resolve(), validate=False).bundle
        return made[name]

    return get


def model(bundle: Bundle) -> tuple[BundleLM, Tokenizer]:
    tokenizer = Tokenizer.load(bundle.path)
    return BundleLM(Session.open(bundle, threads=1), tokenizer), tokenizer


def asked(kind: Any, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def logarithms(name: str, ids: list[int]) -> Any:
    """log softmax [tokens, vocab] of transformers."""
    from transformers import DogeForCausalLM

    folder = presets.models_folder() / name
    model: Any = DogeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode(), pinned():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("name", ["doge-tiny", "doge-tiny-moe"])
def test_continuations_are_scored_as_by_transformers(name: str, bundle: Any) -> None:
    lm, tokenizer = model(bundle(name))
    found = lm.loglikelihood(asked("loglikelihood", *PAIRS))
    for (context, target), (score, greedy) in zip(PAIRS, found, strict=True):
        stripped = context.rstrip()
        given = tokenizer.encode(stripped, add_special_tokens=False) or [0]
        whole = given + tokenizer.encode(target, add_special_tokens=False)
        if context:
            whole = tokenizer.encode(context + target, add_special_tokens=False)
        # As lm-eval has it: the context's own tokens, whatever they are together with what follows.
        count, row = len(whole) - len(given), [*given, *whole[len(given) :]][-513:]
        expected = logarithms(name, row[:-1])[-count:]
        wanted = np.array(row[-count:])
        assert score == pytest.approx(expected[np.arange(count), wanted].sum(), rel=1e-4, abs=1e-4)
        assert greedy == (expected.argmax(-1) == wanted).all()
    assert not all(greedy for _, greedy in found) and found[2][1], "United -> States"


#: Options and changes of SMALL, or an earlier generation, whose rows cannot share calls wherever they lie.
SEVERAL: dict[str, Any] = {
    "mixing experts": ({}, {"is_moe": True}),
    "a rope that turns": ({}, {}),
    "a rope that turns, bounded": ({"kv_cache": "bounded"}, {}),
    "3b": "3b",
    "2": "2",
    "dense": ({}, {"max_position_embeddings": 99}),
}


@pytest.fixture(scope="module", params=SEVERAL)
def small(request: pytest.FixtureRequest, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    kind, root = SEVERAL[request.param], tmp_path_factory.mktemp("small")
    if not isinstance(kind, str):
        options, changes = kind
        found: Bundle = exported(options, **changes)[1]
        return found
    folder = make(root / "c", kind, settings=("max_position_embeddings=30",))
    return export_model(str(folder), root / "b", ExportOptions.resolve(), validate=False).bundle


def test_rows_are_scored_as_alone(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several lengths, on both sides of the rope's limit, in pieces where pieces give the same."""
    monkeypatch.setattr("doge_export.evaluate.perplexity._CALL", 4)
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 257, length).tolist() for length in (29, 9, 16, 4, 29)]
    pairs = [(row[:-2], row[-2:]) for row in rows]
    lm = BundleLM(Session.open(small, threads=1), Tokenizer.load(presets.models_folder() / "doge-tiny"))
    lm.max_length = 29
    found = lm._scores(pairs)
    for pair, row, (score, _) in zip(pairs, rows, found, strict=True):
        assert score == pytest.approx(lm._scores([pair])[0][0], abs=1e-4)
        session = Session.open(small, threads=1)
        (logits,) = (each for _, each in read_rows(session, np.array([row[:-1]]), [slice(0, len(row) - 1)]))
        assert score == pytest.approx(-token_costs(logits[0, -2:], np.array(row[-2:])), abs=1e-4)


def test_windows_are_scored_as_one_call_each(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, session = np.random.default_rng(1).integers(3, 257, 90), Session.open(small, threads=1)
    whole = [each for each in perplexity._scores(session, ids, 28, 9)]
    monkeypatch.setattr("doge_export.evaluate.perplexity._CALL", 4)
    monkeypatch.setattr("doge_export.evaluate.perplexity._LOGITS", 1)
    pieces = [each for each in perplexity._scores(session, ids, 28, 9)]
    assert len(pieces) > len(whole) or small.config.mixes_tokens
    assert sum(count for _, count in whole) == sum(count for _, count in pieces) == 89
    assert sum(total for total, _ in whole) == pytest.approx(sum(total for total, _ in pieces), rel=1e-6)


def test_a_whole_text_is_scored_once(bundle: Any) -> None:
    lm, tokenizer = model(bundle("doge-tiny"))
    long, short = TEXT[:3000], "My fellow citizens"
    found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (long,), (short,)))
    for text, score in zip((long, short), found, strict=True):
        ids = [0, *tokenizer.encode(text, add_special_tokens=False)]
        expected = logarithms("doge-tiny", ids[:-1][:512])
        total = expected[np.arange(len(expected)), ids[1 : len(expected) + 1]].sum()
        if len(ids) > 513:  # the last window is whole, and scores what is left
            rest = len(ids) - 513
            tail = logarithms("doge-tiny", ids[-513:-1])[-rest:]
            total += tail[np.arange(rest), ids[-rest:]].sum()
        assert score == pytest.approx(total, rel=1e-4)


def test_generation_stops_where_it_is_told_to(bundle: Any) -> None:
    opened = bundle("doge-tiny")
    lm, tokenizer = model(opened)
    prompts = ["My fellow", "The President of the United States", TEXT[:300]]
    given = {"until": [" the"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}
    found = lm.generate_until(asked("generate_until", *((prompt, given) for prompt in prompts)))
    for prompt, text in zip(prompts, found, strict=True):
        alone = generate(
            Session.open(opened, threads=1),
            [tokenizer.encode(prompt, add_special_tokens=False)],
            GenerationOptions(max_new_tokens=24, eos_token_ids=(1,)),
            tokenizer,
        ).completions[0]
        assert text == alone.text.split(" the")[0] and text


@pytest.fixture
def task(tmp_path: Path) -> Path:
    data = tmp_path / "questions.json"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    path = tmp_path / "fellow.yaml"
    path.write_text(
        "task: fellow\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        "doc_to_target: answer\n"
        "num_fewshot: 0\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
        encoding="utf-8",
    )
    return path


def test_a_local_task(
    task: Path, bundle: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task.parent / "cache"))
    opened = bundle("doge-tiny")
    assert run(["eval", str(opened.path), "--tasks", str(task), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    lm, _ = model(opened)
    right = 0
    for row in QUESTIONS:
        pairs = [(row["question"], f" {choice}") for choice in row["choices"]]  # type: ignore[attr-defined]
        scores = [score for score, _ in lm.loglikelihood(asked("loglikelihood", *pairs))]
        right += int(np.argmax(scores) == row["answer"])
    assert set(found) == {"fellow"} and right >= 2
    assert found["fellow"]["acc"] == right / len(QUESTIONS)
    assert found["fellow"]["samples"] == len(QUESTIONS) and found["fellow"]["shots"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to measure"),
        (["--tasks", "missing.yaml"], "There is no task file missing.yaml"),
    ],
)
def test_wrong_tasks(
    arguments: list[str], sentence: str, bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(bundle("doge-tiny").path), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_name_that_is_nearly_one() -> None:
    """Not by the command: lm-eval reads 14,000 files to know its names."""
    _check(["piqa", "own.yaml"], [], ["piqa", "own.yaml"])
    with pytest.raises(DogeExportError, match=r"no task 'piqua'\. Did you mean piqa"):
        _check(["piqua"], [], ["piqa", "arc_easy"])


def test_what_cannot_be_had(
    task: Path, bundle: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (task.parent / "questions.json").unlink()
    arguments = ["eval", str(bundle("doge-tiny").path), "--tasks", str(task)]
    assert run(arguments) == 2
    assert "The data of" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(arguments) == 2
    assert "pip install 'doge-export[eval]'" in capsys.readouterr().err
