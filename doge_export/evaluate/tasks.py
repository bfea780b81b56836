"""Tasks of lm-eval on a bundle: multiple choice, perplexity and generation, as others measure them."""

__all__ = ["CARD", "evaluate_tasks"]

import contextlib
import difflib
import importlib.util
import logging
import os
import random
import re
import traceback
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_text
from doge_export.core.progress import Progress, silent
from doge_export.core.tokenizer import Tokenizer
from doge_export.core.tokenizer.chat import chosen_template
from doge_export.evaluate.task_options import ModelArguments, TaskOptions
from doge_export.runtime import Session

if TYPE_CHECKING:
    from doge_export.evaluate.harness import BundleLM

_log = logging.getLogger(__name__)

#: What Doge's own cards report, with five examples before each question.
CARD = (*("mmlu", "triviaqa", "arc_easy", "arc_challenge", "piqa", "hellaswag", "openbookqa", "winogrande"),)
_SHOTS = 5
_SEED, _RANDOM_SEED = 1234, 0  # lm-eval's own
_BOOTSTRAP = 1000
_DEFAULTS = TaskOptions()


def evaluate_tasks(
    session: Session,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    options: TaskOptions = _DEFAULTS,
    progress: Progress = silent,
) -> dict[str, dict[str, Any]]:
    """Task -> its metrics, with `shots`, how many examples stood before each question, and `samples`. Groups
    have an entry of their own.

    `tasks`: names that lm-eval knows, paths of YAML files of its form, or "card" for those of Doge's cards
    with five shots. `progress` gets answered requests.

    Raises:
        DogeExportError: lm-eval is not installed, a task does not exist or asks for what cannot be done, or
            its data cannot be read.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DogeExportError(
            "--tasks needs lm-eval, which is not installed.", "pip install 'doge-export[eval]'"
        )
    multiturn = options.multiturn
    if options.apply_chat_template:
        chosen_template(tokenizer.chat_templates, tokenizer.template_name)
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    lm = _model(session, tokenizer, options.model_args or {}, progress)
    files = [name for name in tasks if name.endswith((".yaml", ".yml"))]
    manager = TaskManager(include_defaults=len(files) < len(tasks) or any(map(_is_group, files)))
    names = list(dict.fromkeys(each for name in tasks for each in (CARD if name == "card" else (name,))))
    _check(names, files, manager.all_tasks)
    shots = _SHOTS if options.shots is None and "card" in tasks else options.shots
    with _blamed(names), _seeds():
        loaded = _load(manager, names)
        for name, task in loaded["tasks"].items():
            _prepare(name, task, shots, options.gen_kwargs, lm)
        # Not simple_evaluate, which imports torch and asks the machine for its drivers.
        results = evaluator.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=options.limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=any(map(_needs_samples, loaded["tasks"].values())),
            system_instruction=options.system_instruction,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=multiturn,
        )
    return {name: _plain(name, figures, results) for name, figures in results["results"].items()}


@contextlib.contextmanager
def _blamed(names: Sequence[str]) -> Generator[None]:
    """Turn what lm-eval, a task or its data raises into a sentence of theirs; our own errors stay."""
    try:
        yield
    except (DogeExportError, MemoryError):
        raise
    except Exception as error:
        if _is_ours(error):
            raise
        raise _foreign(error, names) from error


def _model(
    session: Session, tokenizer: Tokenizer, arguments: Mapping[str, Any], progress: Progress
) -> "BundleLM":
    from doge_export.evaluate.harness import BundleLM

    return BundleLM(session, tokenizer, ModelArguments.read(arguments), progress)


def _prepare(
    name: str, task: Any, shots: int | None, gen_kwargs: Mapping[str, Any] | None, lm: "BundleLM"
) -> None:
    """Set what the user asked of a task, and refuse one that cannot be answered here."""
    _refuse_foreign(name, task)
    _set_shots(task, shots)
    if gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)
    _check_when_built(task, lm)


def _is_group(path: str) -> bool:
    """Whether a YAML file names other tasks, which may be lm-eval's own: all of those have to be known."""
    with contextlib.suppress(OSError, DogeExportError):  # lm-eval says what is wrong with it
        return re.search(r"^group\s*:", read_text(Path(path)), re.MULTILINE) is not None
    return False


@contextlib.contextmanager
def _seeds() -> Generator[None]:
    """The seeds that lm-eval sets, for tasks that draw; what was before comes back."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(_RANDOM_SEED)
    np.random.seed(_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def _check(names: Sequence[str], files: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name in files:
            if not Path(name).is_file():
                raise DogeExportError(f"There is no task file {name}.")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them."
            raise DogeExportError(f"lm-eval has no task {name!r}.", hint)


def _load(manager: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Load all tasks with `TaskManager.load`, and say whose fault it is where that fails."""
    whole: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:
            raise _foreign(error, [name]) from error
        twice = sorted(loaded["tasks"].keys() & whole["tasks"].keys())
        if twice and (loaded["groups"] or whole["groups"]):  # as in lm-eval
            raise DogeExportError(f"Task {twice[0]} is asked for twice.", "Name it or its group.")
        for part, values in whole.items():
            values.update(loaded[part])
    return whole


def _refuse_foreign(name: str, task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise DogeExportError(f"Task {name} asks about pictures or sounds, and a Doge reads text alone.")
    if getattr(task, "UNSAFE_CODE", False):
        raise DogeExportError(
            f"Task {name} runs code that the model writes, which `eval` does not.",
            "lm-eval does with --confirm_run_unsafe_code.",
        )


def _needs_samples(task: Any) -> bool:
    """Whether lm-eval needs the samples of a task: it refuses the metric "bypass" without."""
    return "bypass" in getattr(task, "_metric_fn_list", {})


def _check_when_built(task: Any, lm: "BundleLM") -> None:
    """Have `lm` check the requests of `task` once they are made: those of all tasks are, before the first
    is answered, and what one asks for may depend on its documents."""
    build = task.build_all_requests

    def checked(**kwargs: Any) -> None:
        try:
            build(**kwargs)
        except (DogeExportError, MemoryError):
            raise
        except Exception as error:
            raise _foreign(error, [task.config.task]) from error
        lm.check(task.instances)

    task.build_all_requests = checked


def _set_shots(task: Any, shots: int | None) -> None:
    """Set the number of examples; a task that has none on purpose keeps none, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)


def _is_ours(error: Exception) -> bool:
    """Whether the error arose while we answered, and not in lm-eval, a task or its data."""
    names = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return "doge_export.evaluate.harness" in names


def _foreign(error: Exception, names: Sequence[str]) -> DogeExportError:
    """The error to raise for one of lm-eval, a task or its data."""
    _log.debug("lm-eval failed", exc_info=error)
    said = str(error).strip().splitlines() or [type(error).__name__]
    if _is_about_data(error):
        return DogeExportError(
            f"The data of {', '.join(names)} cannot be read: {said[0]}",
            "Where the hub cannot be reached, give a YAML file of a task over a local file.",
        )
    return DogeExportError(
        f"lm-eval cannot run {', '.join(names)}: {type(error).__name__}: {said[0]}",
        "Mend the task; doge-export -v shows where it fails.",
    )


def _is_about_data(error: Exception) -> bool:
    """Whether a data set is missing, and not a bug. Their libraries raise errors of many kinds."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(kinds & {"datasets", "huggingface_hub", "requests", "httpx"})


def _plain(name: str, figures: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of one task: "acc,none" becomes "acc"; a filter with a name stays behind the
    metric's."""
    metrics = {
        key.removesuffix(",none"): value
        for key, value in figures.items()
        if isinstance(value, int | float) and key not in ("sample_len", "sample_count")
    }
    samples = results.get("n-samples", {}).get(name, {}).get("effective")
    return {**metrics, "shots": results.get("n-shot", {}).get(name), "samples": samples}
