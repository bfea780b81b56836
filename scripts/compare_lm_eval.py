"""`eval --tasks` beside lm-eval's own `hf` model, answer by answer (docs/evaluation.md).

    .venv/bin/python scripts/compare_lm_eval.py
    .venv/bin/python scripts/compare_lm_eval.py --model path/to/checkpoint --tasks arc_easy,gsm8k --limit 50

Without --tasks: local ones, made of models/heldout.txt, of each request type, plain and as chats. Each row is
a task: how many answers, the largest difference of a log-probability, how many are best tokens in one and not
in the other, and how many texts are equal. Exit code 1: a difference above 1e-4 of a value (and of 1 below
it), or another text. transformers' arbitrary choices are pinned (docs/parity.md); --stock leaves them as they
come."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TQDM_DISABLE"] = "1"

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from doge_export import presets
from doge_export.checkpoint import Checkpoint
from doge_export.evaluate.harness import BundleLM
from doge_export.pipeline import export_model
from doge_export.recipe import ExportOptions
from doge_export.runtime import Session
from doge_export.tokenizer import Tokenizer
from doge_export.validate.pinned import pinned
from tests.evaluate._hf import TEXT, write_task

_TOLERANCE = 1e-4
CHAT = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}


def sentences(count: int) -> list[str]:
    """Some of the held-out text, from all over it, of a dozen words and more."""
    found = [each.strip() for each in TEXT.replace("\n", " ").split(". ") if len(each.split()) > 12]
    return found[:: max(1, len(found) // count)][:count]


def local_tasks(folder: Path, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """YAML files, and options of lm-eval."""
    texts = sentences(count)
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    choices = [
        {"q": before, "choices": [halves[(at + step) % len(halves)][1][:40] for step in range(4)]}
        for at, (before, _) in enumerate(halves)
    ]
    choice = {
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
    }
    text = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    pairs = [{"q": before, "a": after} for before, after in halves]
    long = [{"q": "", "a": TEXT[at : at + 3000]} for at in range(0, 3000 * max(1, count // 8), 3000)]
    acc, exact = {"metric_list": [{"metric": "acc"}]}, {"metric_list": [{"metric": "exact_match"}]}
    rolling = {"metric_list": [{"metric": "bits_per_byte"}]}
    generated: dict[str, dict[str, Any]] = {
        "until": {"until": [".", ","], "max_gen_toks": 40},
        "length": {"until": [], "max_gen_toks": 64},
        "penalty": {"until": ["\n\n"], "repetition_penalty": 1.2, "max_new_tokens": 40},
        "ends": {"until": [], "eos_token_id": [1, 265], "max_tokens": 40},
    }
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "multiple_choice": (choices, {**choice, **acc}),
        "loglikelihood": (pairs, {**text, **acc, "target_delimiter": ""}),
        "loglikelihood_rolling": (long, {**text, **rolling}),
    }
    for kind, (rows, config) in kinds.items():
        yield str(write_task(folder, kind, rows, output_type=kind, **config)), {}
    yield (
        str(
            write_task(
                folder, "shots", choices, output_type="multiple_choice", **choice, **acc, num_fewshot=3
            )
        ),
        {},
    )
    yield str(write_task(folder, "chat", choices, output_type="multiple_choice", **choice, **acc)), CHAT
    for name, given in generated.items():
        config = {**text, **exact, "generation_kwargs": given}
        yield str(write_task(folder, name, pairs, output_type="generate_until", **config)), {}
    config = {**text, **exact, "generation_kwargs": generated["until"], "gen_prefix": "It", "num_fewshot": 1}
    yield str(write_task(folder, "prefix", pairs, output_type="generate_until", **config)), CHAT


def answers(lm: Any, task: str, limit: int | None, options: dict[str, Any]) -> dict[str, list[Any]]:
    """Task -> the answers to its requests, in order."""
    loaded = TaskManager(include_defaults=not task.endswith(".yaml")).load([task])
    for each in loaded["tasks"].values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=1234)
    found = evaluator.evaluate(
        lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True, **options
    )
    return {
        name: [answer for sample in samples for (answer,) in sample["resps"]]
        for name, samples in found["samples"].items()
    }


def compare(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """Of one task."""
    largest, relative, best, texts = 0.0, 0.0, 0, 0
    for mine, hf in zip(ours, theirs, strict=True):
        if isinstance(hf, str):
            texts += mine == hf
            continue
        if isinstance(hf, tuple):
            best += mine[1] != hf[1]
            mine, hf = mine[0], hf[0]
        largest = max(largest, abs(mine - hf))
        relative = max(relative, abs(mine - hf) / max(1.0, abs(hf)))
    generated = isinstance(theirs[0], str)
    return {
        "answers": len(ours),
        "difference": None if generated else largest,
        "other_best": None if generated else best,
        "equal_texts": texts if generated else None,
        "good": texts == len(ours) if generated else relative <= _TOLERANCE and best == 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="default: both fixtures")
    parser.add_argument("--tasks", help="names of lm-eval or YAML files")
    parser.add_argument("--limit", type=int, help="documents of a task")
    parser.add_argument("--documents", type=int, default=24, help="of each local task")
    parser.add_argument("--stock", action="store_true", help="transformers as it comes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    print("| model | task | answers | largest difference | other best token | equal texts |")
    print("|---|---|---|---|---|---|")
    for model in arguments.model or ["doge-tiny", "doge-tiny-moe"]:
        with tempfile.TemporaryDirectory() as folder:
            source = presets.models_folder() / model
            checkpoint = source if source.is_dir() else Checkpoint.open(model).folder
            options = ExportOptions.resolve()
            bundle = export_model(str(checkpoint), Path(folder) / "bundle", options, validate=False).bundle
            ours = BundleLM(Session.open(bundle), Tokenizer.load(bundle.path))
            # logits_cache scores a continuation at another's place where two have the same tokens.
            theirs = HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=1, logits_cache=False)
            tasks = (
                [(task, {}) for task in arguments.tasks.split(",")]
                if arguments.tasks
                else local_tasks(Path(folder), arguments.documents)
            )
            for task, given in tasks:
                mine = answers(ours, task, arguments.limit, given)
                with contextlib.nullcontext() if arguments.stock else pinned():
                    wanted = answers(theirs, task, arguments.limit, given)
                for name in mine:
                    row = results[f"{model}: {name}"] = compare(mine[name], wanted[name])
                    told = [row["difference"], row["other_best"], row["equal_texts"]]
                    shown = ["" if each is None else f"{each:.1e}" if at == 0 else str(each)
                             for at, each in enumerate(told)]  # fmt: skip
                    print(f"| {model} | {name} | {row['answers']} | {' | '.join(shown)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(row["good"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
