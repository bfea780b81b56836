"""lm-eval's own `hf` model, the judge of ours: transformers' Doge on the CPU, float32, one request a call."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from doge_export import presets
from doge_export.evaluate.harness import BundleLM
from doge_export.validate.pinned import pinned

TEXT = (presets.models_folder() / "heldout.txt").read_text(encoding="utf-8")


@cache
def reference(folder: Path | str, **arguments: Any) -> Any:
    """`HFLM` of a checkpoint, or of a fixture by its name. Without logits_cache, which scores a continuation
    at the place of another where two requests have the same tokens divided otherwise."""
    from lm_eval.models.huggingface import HFLM

    path = folder if isinstance(folder, Path) else presets.models_folder() / folder
    return HFLM(
        pretrained=str(path), device="cpu", dtype="float32", batch_size=1, logits_cache=False, **arguments
    )


def asked(kind: Any, *arguments: Any) -> list[Instance]:
    """One request for each of `arguments`."""
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def same_answers(ours: BundleLM, theirs: Any, kind: str, *arguments: Any) -> list[Any]:
    """See that both answer alike, log-probabilities to 1e-4 or the float32 of their sum; ours."""
    found = getattr(ours, kind)(asked(kind, *arguments))
    with pinned():
        expected = getattr(theirs, kind)(asked(kind, *arguments), disable_tqdm=True)
    assert len(found) == len(expected)
    for given, mine, wanted in zip(arguments, found, expected, strict=True):
        if kind == "loglikelihood":
            assert mine[1] == wanted[1], given
            mine, wanted = mine[0], wanted[0]
        if kind == "generate_until":
            assert mine == wanted, given
        else:
            assert mine == pytest.approx(wanted, rel=2e-7, abs=1e-4), given
    return list(found)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` gives, or the error that it raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return error


def write_task(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """A task of lm-eval over a file: its YAML."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    path = folder / f"{name}.yaml"
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "num_fewshot": 0,
        **config,
    }
    path.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    return path


def run_task(lm: Any, path: Path, **options: Any) -> Any:
    """What lm-eval finds for `lm`, the answers to single requests among it."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([str(path)])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=1234)
    with pinned():
        return evaluator.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True, **options)
