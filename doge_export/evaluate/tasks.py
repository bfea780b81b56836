"""Tasks of lm-eval on a bundle: multiple choice, perplexity and generation, as others measure them."""

__all__ = ["CARD", "evaluate_tasks"]

import difflib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.runtime import Session
from doge_export.tokenizer import Tokenizer

#: What Doge's own cards report, with five examples before each question.
CARD = (*("mmlu", "triviaqa", "arc_easy", "arc_challenge", "piqa", "hellaswag", "openbookqa", "winogrande"),)
_SHOTS = 5
_SEED = 1234  # lm-eval's own
_BOOTSTRAP = 1000


def evaluate_tasks(
    session: Session,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, dict[str, Any]]:
    """Task -> its metrics, with `shots`, how many examples stood before each question, and `samples`. Groups
    have an entry of their own.

    `tasks`: names that lm-eval knows, paths of YAML files of its form, or "card" for those of Doge's cards
    with five shots. `shots` None: what the task says. `limit`: the first documents of each task only.
    `advance` is told of answered requests.

    Raises:
        DogeExportError: lm-eval is not installed, a task does not exist, or its data cannot be read.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DogeExportError(
            "--tasks needs lm-eval, which is not installed.", "pip install 'doge-export[eval]'"
        )
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from doge_export.evaluate.harness import BundleLM

    files = [name for name in tasks if name.endswith((".yaml", ".yml"))]
    manager = TaskManager(include_defaults=len(files) < len(tasks))
    names = list(dict.fromkeys(each for name in tasks for each in (CARD if name == "card" else (name,))))
    _check(names, files, manager.all_tasks)
    if shots is None and "card" in tasks:
        shots = _SHOTS
    try:
        loaded = manager.load(names)
        for task in loaded["tasks"].values():
            _set_shots(task, shots)
        # Not simple_evaluate, which imports torch and asks the machine for its drivers.
        found = evaluator.evaluate(
            lm=BundleLM(session, tokenizer, advance),
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    except DogeExportError:
        raise
    except Exception as error:
        if not _is_about_data(error):
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DogeExportError(
            f"The data of {', '.join(names)} cannot be read: {said[0]}",
            "Where the hub cannot be reached, give a YAML file of a task over a local file.",
        ) from error
    return {name: _plain(name, figures, found) for name, figures in found["results"].items()}


def _check(names: Sequence[str], files: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name in files:
            if not Path(name).is_file():
                raise DogeExportError(f"There is no task file {name}.")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them."
            raise DogeExportError(f"lm-eval has no task {name!r}.", hint)


def _set_shots(task: Any, shots: int | None) -> None:
    """A task that has none on purpose keeps none, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)


def _is_about_data(error: Exception) -> bool:
    """Whether a data set is missing, and not a bug. Their libraries raise errors of many kinds."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(kinds & {"datasets", "huggingface_hub", "requests", "httpx"})


def _plain(name: str, figures: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Of one task: "acc,none" becomes "acc"; a filter with a name stays behind the metric's."""
    metrics = {
        key.removesuffix(",none"): value
        for key, value in figures.items()
        if isinstance(value, int | float) and key not in ("sample_len", "sample_count")
    }
    samples = found.get("n-samples", {}).get(name, {}).get("effective")
    return {**metrics, "shots": found.get("n-shot", {}).get(name), "samples": samples}
