"""`eval --tasks` beside lm-eval's own `hf` model, answer by answer (docs/lab/2026-11-30-evaluation.md).

    .venv/bin/python scripts/compare_lm_eval.py
    .venv/bin/python scripts/compare_lm_eval.py --model path/to/checkpoint --tasks arc_easy,gsm8k --limit 50

Without --tasks: local ones, made of models/heldout.txt, of each request type, plain and as chats, with
contexts that are too long, empty ones, and special tokens. Each row is a task: how many answers; the largest
difference of a log-probability; how far hf, which sums in float32, is from itself with softmax_dtype=float64;
how far we are from that; how many answers are more than 1e-4 away, and how far these are when hf keeps the
keys of our graph where rounding alone ranks them; how many are best tokens in one and not in the other; how
many texts are equal. Exit code 1: still more than 1e-4, another best token or another text.

transformers' arbitrary choices are pinned (docs/explanation/exactness.md); --stock leaves them as they come.
We run without the native kernels, whose keys cannot be seen; with --native on them, as `eval`, and nothing is
settled."""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TQDM_DISABLE"] = "1"

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from doge_export.core import presets
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate.harness import BundleLM
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import Session
from doge_export.validate.backends.deterministic_reference import pinned
from tests.evaluate._hf import TEXT, TOLERANCE, in_float64, settled_answer, value_of, write_task

_COLUMNS = {
    "answers": "answers",
    "difference": "largest difference",
    "rounding_of_hf": "hf's own rounding",
    "without_it": "without it",
    "beyond": "beyond 1e-4",
    "settled": "settled",
    "other_best": "other best token",
    "equal_texts": "equal texts",
}
_ACC, _EXACT = {"metric_list": [{"metric": "acc"}]}, {"metric_list": [{"metric": "exact_match"}]}
_TEXT = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
_SCORED = {**_TEXT, **_ACC, "output_type": "loglikelihood", "target_delimiter": ""}
_ROLLING = {**_TEXT, "output_type": "loglikelihood_rolling", "metric_list": [{"metric": "bits_per_byte"}]}
_CHOICE = {
    **_ACC,
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
    "target_delimiter": "",
}
CHAT = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}


def sentences(count: int) -> list[str]:
    """Some of the held-out text, from all over it, of a dozen words and more."""
    long_enough = [each.strip() for each in TEXT.replace("\n", " ").split(". ") if len(each.split()) > 12]
    return long_enough[:: max(1, len(long_enough) // count)][:count]


def documents(count: int, lm: BundleLM) -> dict[str, list[dict[str, Any]]]:
    """Documents by what is special about them. "long" has contexts longer than `lm` reads."""
    texts = sentences(count)
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    named = lm.tokenizer.special_tokens
    eos = named["eos_token"]
    bos, length, step = named.get("bos_token", eos), 6 * lm.max_length, len(TEXT) // count
    long = [(TEXT[at:] + TEXT)[: length + 100] for at in range(0, step * count, step)]
    forms = (f"{bos}{{}}", f"One.{eos}{{}}", f"{{}}{eos}")
    blanks = ["", " ", "\n\n"] if lm.tok_encode("") else [""]  # hf takes no context without a token
    return {
        "choices": [
            {"q": before, "choices": [halves[(at + other) % len(halves)][1][:40] for other in range(4)]}
            for at, (before, _) in enumerate(halves)
        ],
        "pairs": [{"q": before, "a": after} for before, after in halves],
        "whole": [{"q": "", "a": TEXT[3000 * at : 3000 * (at + 1)]} for at in range(max(1, count // 8))],
        "long": [{"q": text[:length], "a": text[length:]} for text in long],
        "empty": [{"q": blanks[at % len(blanks)], "a": text} for at, text in enumerate(texts)],
        "special": [
            {"q": forms[at % len(forms)].format(before), "a": f"{after}{eos}"}
            for at, (before, after) in enumerate(halves)
        ],
    }


def generated(**arguments: Any) -> dict[str, Any]:
    return {**_TEXT, **_EXACT, "output_type": "generate_until", "generation_kwargs": arguments}


def local_tasks(folder: Path, count: int, lm: BundleLM) -> Iterator[tuple[str, dict[str, Any]]]:
    """YAML files, and options of lm-eval."""
    until: dict[str, Any] = {"until": [".", ","], "max_gen_toks": 40}
    tasks: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "multiple_choice": ("choices", _CHOICE, {}),
        "loglikelihood": ("pairs", _SCORED, {}),
        "loglikelihood_rolling": ("whole", _ROLLING, {}),
        "shots": ("choices", {**_CHOICE, "num_fewshot": 3}, {}),
        "chat": ("choices", _CHOICE, CHAT),
        "long": ("long", _SCORED, {}),
        "empty": ("empty", _SCORED, {}),
        "special": ("special", _SCORED, {}),
        "special_rolling": ("special", _ROLLING, {}),
        "until": ("pairs", generated(**until), {}),
        "length": ("pairs", generated(until=[], max_gen_toks=64), {}),
        "penalty": ("pairs", generated(until=["\n\n"], repetition_penalty=1.2, max_new_tokens=40), {}),
        "ends": ("pairs", generated(until=[], eos_token_id=[1, 265], max_tokens=40), {}),
        "prefix": ("pairs", {**generated(**until), "gen_prefix": "It", "num_fewshot": 1}, CHAT),
        "long_until": ("long", generated(until=[], max_gen_toks=64), {}),
        "empty_until": ("empty", generated(**until), {}),
        # No end of text by its id: what ends it is its text.
        "special_until": ("special", generated(until=[], eos_token_id=[265], max_gen_toks=40), {}),
    }
    rows = documents(count, lm)
    for name, (of, config, options) in tasks.items():
        if name != "empty_until" or lm.tok_encode(""):
            yield str(write_task(folder, name, rows[of], **config)), options


def answers(lm: Any, task: str, limit: int | None, options: dict[str, Any]) -> dict[str, list[Any]]:
    """Task -> (arguments, answer) of its requests, in order."""
    loaded = TaskManager(include_defaults=not task.endswith(".yaml")).load([task])
    for each in loaded["tasks"].values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=1234)
    results = evaluator.evaluate(
        lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True, **options
    )
    return {
        name: [
            (arguments, answer)
            for sample in samples
            for arguments, (answer,) in zip(sample["arguments"], sample["resps"], strict=True)
        ]
        for name, samples in results["samples"].items()
    }


def compare(
    ours: list[Any], theirs: list[Any], exact: list[Any], settle: Callable[[str, Any], Any] | None
) -> dict[str, Any]:
    """Compare the answers of one task. `exact`: hf's, summed in float64. `settle`: kind of a request and its
    arguments -> hf's answer with near-ties as in our graph."""
    mine, wanted, summed = ([answer for _, answer in each] for each in (ours, theirs, exact))
    if isinstance(wanted[0], str):
        equal = sum(one == other for one, other in zip(mine, wanted, strict=True))
        return {"answers": len(mine), "equal_texts": equal, "good": equal == len(mine)}
    kind = "loglikelihood" if isinstance(wanted[0], tuple) else "loglikelihood_rolling"
    others = 0
    if kind == "loglikelihood":
        others = sum(one[1] != other[1] for one, other in zip(mine, wanted, strict=True))
    apart = _differences(mine, summed)
    off = [number for number, each in enumerate(apart) if each > TOLERANCE]
    left = [apart[number] for number in off]
    if settle is not None:
        left = _differences([mine[at] for at in off], [settle(kind, ours[at][0]) for at in off])
    return {
        "answers": len(mine),
        "difference": max(_differences(mine, wanted)),
        "rounding_of_hf": max(_differences(wanted, summed)),
        "without_it": max(apart),
        "beyond": len(off),
        **({"settled": max(left)} if off and settle is not None else {}),
        "other_best": others,
        "good": others == 0 and max(left, default=0.0) <= TOLERANCE,
    }


def _differences(some: list[Any], others: list[Any]) -> list[float]:
    return [abs(value_of(one) - value_of(other)) for one, other in zip(some, others, strict=True)]


def _shown(row: dict[str, Any], column: str) -> str:
    value = row.get(column, "")
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="default: both fixtures")
    parser.add_argument("--tasks", help="names of lm-eval or YAML files")
    parser.add_argument("--limit", type=int, help="documents of a task")
    parser.add_argument("--documents", type=int, default=24, help="of each local task")
    parser.add_argument("--stock", action="store_true", help="transformers as it comes")
    parser.add_argument("--native", action="store_true", help="us on the native kernels")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    print(f"| model | task | {' | '.join(_COLUMNS.values())} |")
    print("|---" * (2 + len(_COLUMNS)) + "|")
    for model in arguments.model or ["doge-tiny", "doge-tiny-moe"]:
        with tempfile.TemporaryDirectory() as folder:
            source = presets.models_folder() / model
            checkpoint = source if source.is_dir() else Checkpoint.open(model).folder
            options = ExportOptions.resolve()
            bundle = export_model(str(checkpoint), Path(folder) / "bundle", options, validate=False).bundle
            ours = BundleLM(Session.open(bundle, native=arguments.native), Tokenizer.load(bundle.path))
            # logits_cache scores a continuation at another's place where two have the same tokens.
            theirs = HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=1, logits_cache=False)
            plain = not (arguments.native or arguments.stock)
            settle = functools.partial(settled_answer, ours, theirs) if plain else None
            tasks = (
                [(task, {}) for task in arguments.tasks.split(",")]
                if arguments.tasks
                else local_tasks(Path(folder), arguments.documents, ours)
            )
            for task, chat_options in tasks:
                mine = answers(ours, task, arguments.limit, chat_options)
                with contextlib.nullcontext() if arguments.stock else pinned():
                    wanted = exact = answers(theirs, task, arguments.limit, chat_options)
                    if any(not isinstance(each[0][1], str) for each in wanted.values()):
                        with in_float64(theirs):
                            exact = answers(theirs, task, arguments.limit, chat_options)
                for name in mine:
                    row = results[f"{model}: {name}"] = compare(mine[name], wanted[name], exact[name], settle)
                    print(
                        f"| {model} | {name} | {' | '.join(_shown(row, key) for key in _COLUMNS)} |",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(row["good"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
