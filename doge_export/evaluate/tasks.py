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
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.json_file import read_text
from doge_export.runtime import Session
from doge_export.tokenizer import Tokenizer
from doge_export.tokenizer.chat import chosen_template

if TYPE_CHECKING:
    from doge_export.evaluate.harness import BundleLM

_log = logging.getLogger(__name__)

#: What Doge's own cards report, with five examples before each question.
CARD = (*("mmlu", "triviaqa", "arc_easy", "arc_challenge", "piqa", "hellaswag", "openbookqa", "winogrande"),)
_SHOTS = 5
_SEED, _RANDOM_SEED = 1234, 0  # lm-eval's own
_BOOTSTRAP = 1000

#: Arguments of lm-eval's `hf` model that say how texts are read and answered -> their types.
_MODEL_ARGS: dict[str, tuple[type, ...]] = {
    "add_bos_token": (bool,),
    "prefix_token_id": (int,),
    "max_length": (int,),
    "think_end_token": (int, str),
    "enable_thinking": (bool,),
    "chat_template_args": (dict,),
}


def evaluate_tasks(
    session: Session,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Task -> its metrics, with `shots`, how many examples stood before each question, and `samples`. Groups
    have an entry of their own.

    `tasks`: names that lm-eval knows, paths of YAML files of its form, or "card" for those of Doge's cards
    with five shots. `shots` None: what the task says. `limit`: the first documents of each task only.
    `advance` is told of answered requests. The others are options of lm-eval's command, with their meaning:
    `fewshot_as_multiturn` None is what `apply_chat_template` is; `gen_kwargs` win over those of the tasks;
    `model_args` are those of its `hf` model that say how texts are read and answered.

    Raises:
        DogeExportError: lm-eval is not installed, a task does not exist or asks for what cannot be done, or
            its data cannot be read.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DogeExportError(
            "--tasks needs lm-eval, which is not installed.", "pip install 'doge-export[eval]'"
        )
    if fewshot_as_multiturn is None:
        fewshot_as_multiturn = apply_chat_template
    if fewshot_as_multiturn and not apply_chat_template:
        raise DogeExportError("Examples are turns of a chat with a chat template only.", "Ask for it too.")
    if apply_chat_template:
        chosen_template(tokenizer.chat_templates, tokenizer.template_name)
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    lm = _model(session, tokenizer, advance, model_args or {})
    files = [name for name in tasks if name.endswith((".yaml", ".yml"))]
    manager = TaskManager(include_defaults=len(files) < len(tasks) or any(map(_is_group, files)))
    names = list(dict.fromkeys(each for name in tasks for each in (CARD if name == "card" else (name,))))
    _check(names, files, manager.all_tasks)
    if shots is None and "card" in tasks:
        shots = _SHOTS
    try:
        with _seeds():
            loaded = _load(manager, names)
            for name, task in loaded["tasks"].items():
                _refuse_foreign(name, task)
                _set_shots(task, shots)
                if gen_kwargs and task.get_config("output_type") == "generate_until":
                    task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)
                _check_when_built(task, lm)
            # Not simple_evaluate, which imports torch and asks the machine for its drivers.
            found = evaluator.evaluate(
                lm=lm,
                task_dict=loaded,
                limit=limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=any(map(_needs_samples, loaded["tasks"].values())),
                system_instruction=system_instruction,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
            )
    except (DogeExportError, MemoryError):
        raise
    except Exception as error:
        if _is_ours(error):
            raise
        raise _foreign(error, names) from error
    return {name: _plain(name, figures, found) for name, figures in found["results"].items()}


def _model(
    session: Session, tokenizer: Tokenizer, advance: Callable[[int], None], given: Mapping[str, Any]
) -> "BundleLM":
    from doge_export.evaluate.harness import BundleLM

    for name, value in given.items():
        kinds = _MODEL_ARGS.get(name)
        if kinds is None:
            raise DogeExportError(
                f"A bundle has no use for the model argument {name}.", f"There are {', '.join(_MODEL_ARGS)}."
            )
        if value is not None and type(value) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise DogeExportError(f"The model argument {name} is {value!r}, not {wanted}.")
    return BundleLM(session, tokenizer, advance, **given)


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
    """What `TaskManager.load` gives for all of them, and whose fault it is where it gives nothing."""
    whole: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:
            raise _foreign(error, [name]) from error
        twice = sorted(found["tasks"].keys() & whole["tasks"].keys())
        if twice and (found["groups"] or whole["groups"]):  # as in lm-eval
            raise DogeExportError(f"Task {twice[0]} is asked for twice.", "Name it or its group.")
        for part, values in whole.items():
            values.update(found[part])
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
    """lm-eval refuses the metric "bypass" without."""
    return "bypass" in getattr(task, "_metric_fn_list", {})


def _check_when_built(task: Any, lm: "BundleLM") -> None:
    """Let the requests of `task` be seen by `lm` once they are made: those of all tasks are, before the first
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
    """A task that has none on purpose keeps none, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)


def _is_ours(error: Exception) -> bool:
    """Whether it arose while we answered, and not in lm-eval, a task or its data."""
    names = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return "doge_export.evaluate.harness" in names


def _foreign(error: Exception, names: Sequence[str]) -> DogeExportError:
    """What to say of an error of lm-eval, a task or its data."""
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


def _plain(name: str, figures: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Of one task: "acc,none" becomes "acc"; a filter with a name stays behind the metric's."""
    metrics = {
        key.removesuffix(",none"): value
        for key, value in figures.items()
        if isinstance(value, int | float) and key not in ("sample_len", "sample_count")
    }
    samples = found.get("n-samples", {}).get(name, {}).get("effective")
    return {**metrics, "shots": found.get("n-shot", {}).get(name), "samples": samples}
