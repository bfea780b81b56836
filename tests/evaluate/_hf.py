"""lm-eval's own `hf` model, the judge of ours: transformers' Doge on the CPU, float32, one request a call."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from doge_export.core import presets
from doge_export.evaluate.harness import BundleLM
from doge_export.evaluate.perplexity import calls_of
from doge_export.validate.backends.deterministic_reference import pinned
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

TOLERANCE = 1e-4  # of a log-probability
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


@contextlib.contextmanager
def in_float64(theirs: Any) -> Iterator[None]:
    """While this lasts, `theirs` has its option softmax_dtype=float64: log-probabilities and their sums are
    float64, of the same float32 logits. As it comes it sums in float32."""
    before, theirs.softmax_dtype = theirs.softmax_dtype, torch.float64
    try:
        yield
    finally:
        theirs.softmax_dtype = before


@contextlib.contextmanager
def settled(theirs: Any, ours: BundleLM) -> Iterator[None]:
    """While this lasts, `theirs` keeps the keys and takes the experts of our graph, read in our pieces, where
    rounding alone is between them and its own (doge_export.validate.backends.near_ties)."""
    judge, graph = Reference(Path(theirs.model.name_or_path)), FunctionBodies(ours._session.bundle)

    def call(ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        parts = calls_of(ours._session, length)
        pieces = Schedule("pieces", tuple(part.stop - part.start for part in parts))
        tokens = Tokens(ids.numpy(), np.ones((1, length), np.int64), np.arange(length)[None])
        chosen = _as_one_call(graph.run(pieces, tokens, rope_length=length), length)
        return torch.from_numpy(judge.run(Schedule("whole", (length,)), tokens, follow=chosen).logits)

    theirs._model_call = call
    try:
        yield
    finally:
        del theirs._model_call


def _as_one_call(run: Run, length: int) -> Run:
    """What a run in pieces chose, as if it had been one call."""
    keys = [
        np.concatenate(
            [np.pad(one, ((0, 0), (0, 0), (0, 0), (0, length - one.shape[-1]))) for one in layer], 2
        )
        for layer in zip(*run.keys, strict=True)
    ]
    experts = [np.concatenate(layer) for layer in zip(*run.experts, strict=True)]
    return Run(run.logits, [keys], [experts])


def asked(kind: Any, *arguments: Any) -> list[Instance]:
    """One request for each of `arguments`."""
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def settled_answer(ours: BundleLM, theirs: Any, kind: str, given: Any) -> Any:
    """hf's answer to one request, summed in float64 and with near-ties as in our graph."""
    with pinned(), in_float64(theirs), settled(theirs, ours):
        (found,) = getattr(theirs, kind)(asked(kind, given), disable_tqdm=True)
    return found


def same_answers(ours: BundleLM, theirs: Any, kind: str, *arguments: Any) -> list[Any]:
    """See that both answer alike, log-probabilities to 1e-4 where hf sums in float64; as it comes it is from
    that what rounding a sum to float32 makes, twice at most. Ours."""
    found = getattr(ours, kind)(asked(kind, *arguments))
    with pinned():
        expected = getattr(theirs, kind)(asked(kind, *arguments), disable_tqdm=True)
        exact = expected
        if kind != "generate_until":
            with in_float64(theirs):
                exact = getattr(theirs, kind)(asked(kind, *arguments), disable_tqdm=True)
    assert len(found) == len(expected) == len(exact)
    for given, mine, wanted, best in zip(arguments, found, expected, exact, strict=True):
        if kind == "generate_until":
            assert mine == wanted, given
            continue
        if kind == "loglikelihood":
            assert wanted[1] == best[1], given
        assert value_of(wanted) == pytest.approx(value_of(best), rel=2e-7, abs=1e-5), given
        same_score(ours, theirs, kind, given, mine, best)
    return list(found)


def same_score(ours: BundleLM, theirs: Any, kind: str, given: Any, mine: Any, exact: Any) -> None:
    """See that our answer to a request is hf's in float64, to 1e-4: `exact`, or where rounding alone ranks
    keys, what hf answers with those that our graph keeps."""
    if isinstance(mine, tuple):
        assert mine[1] == exact[1], given
    if abs(value_of(mine) - value_of(exact)) > TOLERANCE:
        exact = settled_answer(ours, theirs, kind, given)
    assert value_of(mine) == pytest.approx(value_of(exact), rel=0, abs=TOLERANCE), given


def value_of(answer: Any) -> float:
    """The log-probability of an answer."""
    return float(answer[0] if isinstance(answer, tuple) else answer)


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
