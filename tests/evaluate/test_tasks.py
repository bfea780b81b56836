"""`eval --tasks`: whole tasks over local files, beside lm-eval with its own `hf` model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import reporting
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate import evaluate_tasks
from doge_export.evaluate.tasks import _check
from doge_export.runtime import Session
from tests.evaluate._hf import TEXT, in_float64, reference, run_task, same_score, write_task

QUESTIONS = [
    {"question": "My fellow", "choices": ["citizens", "zebra", "of"], "answer": 0},
    {"question": "the United", "choices": ["kettle", "States of America", "and"], "answer": 1},
    {"question": "the Congress of the United ", "choices": ["it", "blue", "States"], "answer": 2},
    {"question": "peace and", "choices": ["the", "prosperity", "xylophone"], "answer": 1},
]
#: Request type -> documents, and what the task says of them.
TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "multiple_choice": (
        QUESTIONS,
        {
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_mutual_info"}],
        },
    ),
    "loglikelihood": (
        [{"before": TEXT[at : at + 300], "after": TEXT[at + 300 : at + 340]} for at in (0, 1700, 3900)],
        {
            "doc_to_text": "{{before}}",
            "doc_to_target": "{{after}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
    ),
    "loglikelihood_rolling": (
        [{"text": TEXT[:2500]}, {"text": "My fellow citizens"}],
        {
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    ),
    "generate_until": (
        [{"question": row["question"], "answer": row["choices"][row["answer"]]} for row in QUESTIONS],
        {
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [",", " of"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chat": {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."},
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def task(folder: Path, kind: str, **changes: Any) -> Path:
    rows, config = TASKS[kind]
    kept = {key: value for key, value in {**config, **changes}.items() if value is not None}
    return write_task(folder, f"mine_{kind}", rows, output_type=kind, **kept)


@pytest.mark.parametrize("name", ["doge-tiny", "doge-tiny-moe"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_task_of_each_type(kind: str, name: str, opened: Callable[..., Any], tmp_path: Path) -> None:
    path = task(tmp_path, kind)
    lm, theirs = opened(name), reference(name)
    with in_float64(theirs):
        found, expected = run_task(lm, path), run_task(theirs, path)
    (mine,), (wanted,) = found["samples"].values(), expected["samples"].values()
    assert [each["arguments"] for each in mine] == [each["arguments"] for each in wanted]
    compare(lm, theirs, mine, wanted)
    told: list[int] = []
    session, tokenizer = Session.open(lm._session.bundle, threads=1), Tokenizer.load(lm._session.bundle.path)
    progress = reporting(lambda requests, stage: told.append(requests))
    figures = evaluate_tasks(session, tokenizer, [str(path)], progress=progress)[f"mine_{kind}"]
    for key, value in expected["results"][f"mine_{kind}"].items():
        if key.endswith(",none") and isinstance(value, float):
            assert figures[key.removesuffix(",none")] == pytest.approx(value, rel=1e-5), key
    assert figures["samples"] == len(TASKS[kind][0]) and figures["shots"] == 0 and sum(told) >= len(mine)


def compare(lm: Any, theirs: Any, mine: list[Any], wanted: list[Any]) -> None:
    """See that the answers to single requests are the same."""
    for ours, hf in zip(mine, wanted, strict=True):
        for given, (one,), (other,) in zip(ours["arguments"], ours["resps"], hf["resps"], strict=True):
            if isinstance(other, str):
                assert one == other
            else:
                kind = "loglikelihood" if isinstance(other, tuple) else "loglikelihood_rolling"
                same_score(lm, theirs, kind, given, one, other)


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until"])
def test_chats_examples_and_a_beginning(kind: str, opened: Callable[..., Any], tmp_path: Path) -> None:
    changes = {"num_fewshot": 2, "gen_prefix": "The answer:", "description": "Questions.\n"}
    path = task(tmp_path, kind, **changes)
    for options in OPTIONS.values():
        with in_float64(reference("doge-tiny")):
            found, expected = (
                run_task(lm, path, **options) for lm in (opened("doge-tiny"), reference("doge-tiny"))
            )
        (mine,), (wanted,) = found["samples"].values(), expected["samples"].values()
        assert [each["arguments"] for each in mine] == [each["arguments"] for each in wanted]
        compare(opened("doge-tiny"), reference("doge-tiny"), mine, wanted)


def test_the_command(bundle: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(task(tmp_path, "generate_until")), str(bundle("doge-tiny").path)
    flags = ["--apply-chat-template", "--system-instruction", "Be brief.", "--no-fewshot-as-multiturn"]
    flags += [
        "--gen-kwargs",
        'max_gen_toks=3,until=[".",","]',
        "--model-args",
        "max_length=200",
        "--json",
        "-",
    ]
    assert run(["eval", out, "--tasks", path, *flags]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["mine_generate_until"]
    assert set(found) == {"exact_match", "exact_match_stderr", "shots", "samples"} and found["samples"] == 4


#: Flags, the task's changes -> what is said.
WRONG: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "an argument": ([], {"generation_kwargs": {"num_beams": 4}}, "mine_generate_until: .*num_beams 4"),
    "of the command": (["--gen-kwargs", "top_k=5,foo=1"], {}, "mine_generate_until: .*has foo"),
    "no pair": (["--gen-kwargs", "top_k"], {}, "--gen-kwargs 'top_k' is not key=value"),
    "the model's": (["--model-args", "dtype=float16"], {}, "no use for the model argument dtype"),
    "its type": (["--model-args", "max_length=many"], {}, "max_length is 'many', not int"),
    "turns": (["--fewshot-as-multiturn"], {}, "with a chat template only"),
    "its text": ([], {"doc_to_text": "{{question.x.y}}"}, "mine_generate_until.yaml: UndefinedError"),
    "a metric": ([], {"metric_list": [{"metric": "unheard"}]}, "lm-eval cannot run"),
    "code": ([], {"unsafe_code": True}, "runs code that the model writes"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "changes", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_said_before_anything_runs(
    flags: list[str],
    changes: dict[str, Any],
    sentence: str,
    bundle: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = str(task(tmp_path, "loglikelihood"))  # its requests would be answered first
    names = f"{first},{task(tmp_path, 'generate_until', **changes)}"
    monkeypatch.setattr("doge_export.evaluate.harness.score_pairs", None)
    assert run(["eval", str(bundle("doge-tiny").path), "--tasks", names, *flags]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(sentence, error), error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to measure"),
        (["--tasks", "missing.yaml"], "There is no task file missing.yaml"),
        (["--text", "x", "--gen-kwargs", "top_k=1"], "are for tasks"),
    ],
)
def test_wrong_tasks(
    arguments: list[str], sentence: str, bundle: Callable[..., Any], capsys: pytest.CaptureFixture[str]
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
    bundle: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = task(tmp_path, "multiple_choice")
    path.with_suffix(".jsonl").unlink()
    arguments = ["eval", str(bundle("doge-tiny").path), "--tasks", str(path)]
    assert run(arguments) == 2
    assert "The data of" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(arguments) == 2
    assert "pip install 'doge-export[eval]'" in capsys.readouterr().err
