"""Rounds of decoding, ours and the reference's in turns, and what they add up to."""

__all__ = ["bench"]

import contextlib
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.bench.machine import describe, usable_cpus
from doge_export.bench.process import Worker
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, is_doge2
from doge_export.core.progress import Progress, silent

_log = logging.getLogger(__name__)

_OURS, _REFERENCE = "doge_export.bench.worker", "doge_export.bench.reference"
_SETTLE = 0.05  # seconds in which the threads of the side before stop spinning

#: Name -> the module of its process, and the arguments that open the model there.
_Sides = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class _Measured:
    """What the process of one side said when it was opened, in each round, and of its memory in bytes."""

    loaded: dict[str, Any]
    runs: list[dict[str, Any]]
    memory: int


def bench(
    bundle: Path | str,
    reference: str | None = None,
    *,
    prompt_tokens: int = 32,
    new_tokens: int = 128,
    threads: int | None = None,
    rounds: int = 5,
    rows: int = 1,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure greedy decoding of random prompts, batch 1; with a `reference` transformers' beside it. With
    `sampling`, of GenerationOptions such as temperature and top_p, each round is sampled as well, by the same
    process, and the report has `sampled` with its `ratio` to greedy.

    `rows` above 1: so many at once, in the slots of a pool; rates are those of all together.

    Each side lives in a process of its own, so that the memory is its own too, and they take turns, so that
    a change of the machine's speed meets both. Rates are those of the best round, the medians lie beside
    them. A round before the first is not counted. `threads`: as many as there are processors, if None.
    `progress` gets what was loaded and the rounds, the one before the first too.

    Raises:
        DogeExportError: the bundle is damaged, its cache too short, the reference of another shape,
            transformers is not installed, or several rows are asked for beside it or with `sampling`.
    """
    from doge_export.runtime import open_folder
    from doge_export.runtime.graph import check_threads

    opened = open_folder(bundle)
    _check(opened, prompt_tokens, new_tokens, rounds)
    if rows < 1 or (rows > 1 and (reference is not None or sampling)):
        raise DogeExportError(f"{rows} rows are measured alone: greedy, beside no other runtime.")
    threads = usable_cpus() if threads is None else threads
    check_threads(threads)
    sides: _Sides = {"ours": (_OURS, {"bundle": str(opened.path)})}
    if reference is not None:
        folder = _reference_folder(opened, reference)
        sides["transformers"] = (_REFERENCE, {"checkpoint": str(folder)})
    generator = np.random.default_rng(seed)
    prompts = generator.integers(0, opened.config.vocab_size, (rounds + 1, prompt_tokens)).tolist()

    drawn = {"seed": seed, **sampling} if sampling else {}
    measured = _measure(sides, prompts, new_tokens, threads, rows, drawn, progress)
    figures = {name: _figures(side) for name, side in measured.items()}
    loaded = {name: side.loaded for name, side in measured.items()}
    report = {
        "bundle": str(opened.path),
        "options": opened.manifest.options.to_dict(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": threads,
        "rows": rows,
        "seed": seed,
        "graph": loaded["ours"]["graph"],
        "native": loaded["ours"]["native"],
        **figures["ours"],
        "against": {},
        "machine": describe(),
        "versions": {key: value for side in loaded.values() for key, value in side["versions"].items()},
    }
    if drawn:
        sampled = figures["sampled"]
        sampled["options"] = drawn
        sampled["ratio"] = _ratio(sampled["median"], figures["ours"]["median"], "decode_tokens_per_second")
        report["sampled"] = sampled
    if "transformers" in figures:
        theirs = figures["transformers"]
        theirs["ratio"] = _ratio(figures["ours"], theirs, "decode_tokens_per_second")
        theirs["prefill_ratio"] = _ratio(figures["ours"], theirs, "prefill_tokens_per_second")
        theirs["equal_tokens"] = _equal_tokens(measured["ours"].runs, measured["transformers"].runs)
        report["against"] = {"transformers": theirs}
    return report


def _measure(
    sides: _Sides,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    threads: int,
    rows: int,
    drawn: Mapping[str, Any],
    progress: Progress,
) -> dict[str, _Measured]:
    """Let each side continue all prompts, in turns; the first is not counted. `drawn`: our side does it again
    with these options, as the side `sampled`."""
    progress.planned(len(sides) * (1 + len(prompts)) + (len(prompts) if drawn else 0))
    with contextlib.ExitStack() as stack:
        workers, loaded = {}, {}
        for name, (module, arguments) in sides.items():
            progress(0, f"loading {name}")
            workers[name] = stack.enter_context(Worker(module))
            loaded[name] = workers[name].call("open", threads=threads, **arguments)
            for sentence in loaded[name].get("warnings", ()):
                _log.warning("%s", sentence)
            progress()
        turns: list[tuple[str, Worker, dict[str, Any]]] = [
            (name, worker, {}) for name, worker in workers.items()
        ]
        if drawn:
            turns.insert(1, ("sampled", workers["ours"], {"sampling": dict(drawn)}))
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in turns}
        for number, prompt in enumerate(prompts):
            for name, worker, more in turns:
                stage = f"round {number} of {len(prompts) - 1}" if number else "warming up"
                progress(0, f"{stage}, {name}")
                time.sleep(_SETTLE)
                if rows > 1:
                    run = worker.call("rows", prompt=prompt, new_tokens=new_tokens, rows=rows)
                else:
                    run = worker.call("round", prompt=prompt, new_tokens=new_tokens, **more)
                if number:
                    runs[name].append(run)
                progress()
        memory = {name: worker.call("memory") for name, worker in workers.items()}
    result = {name: _Measured(loaded[name], runs[name], memory[name]) for name in sides}
    if drawn:
        result["sampled"] = _Measured(loaded["ours"], runs["sampled"], memory["ours"])
    return result


def _check(bundle: Bundle, prompt_tokens: int, new_tokens: int, rounds: int) -> None:
    for name, value, minimum in (
        ("--prompt-tokens", prompt_tokens, 1),
        ("--new-tokens", new_tokens, 2),  # the first one is prefill's
        ("--rounds", rounds, 1),
    ):
        if value < minimum:
            raise DogeExportError(f"{name} {value} is too few.", f"Give at least {minimum}.")
    slots, needed = bundle.manifest.cache.max_length, prompt_tokens + new_tokens - 1
    if slots is not None and needed > slots:
        raise DogeExportError(
            f"A prompt of {prompt_tokens} tokens and {new_tokens} new ones need {needed} slots, and the "
            f"bundle's static cache holds {slots}.",
            "Ask for fewer, or export with a larger --max-length.",
        )


def _reference_folder(bundle: Bundle, reference: str) -> Path:
    folder, generation = presets.resolve_model(reference), bundle.config.generation
    if generation != CURRENT:
        raise DogeExportError(
            f"{bundle.path} is a Doge of generation {generation}, and transformers has no model of it.",
            "Leave --against out.",
        )
    checkpoint = Checkpoint.open(folder)
    if is_doge2(checkpoint.config.raw):
        raise DogeExportError(
            f"{folder} is a Doge2, and transformers does not know it by that name.",
            "Give --reference the folder that doge-export convert makes of it.",
        )
    if not checkpoint.found_by_transformers:
        raise DogeExportError(
            f"The tensors of {folder} have names under which transformers does not find them.",
            "Give --reference the folder that doge-export convert makes of it.",
        )
    if checkpoint.config != bundle.config:
        raise DogeExportError(
            f"The config.json of {folder} is not the one that {bundle.path} was exported from.",
            "Give --reference the checkpoint of this bundle.",
        )
    return folder


def _figures(side: _Measured) -> dict[str, Any]:
    rates: dict[str, Any] = {"median": {}}
    for part in ("decode", "prefill"):
        speeds = [run[f"{part}_tokens"] / run[f"{part}_seconds"] for run in side.runs]
        rates[f"{part}_tokens_per_second"] = max(speeds)
        rates["median"][f"{part}_tokens_per_second"] = statistics.median(speeds)
    rounds = [{key: value for key, value in run.items() if key != "tokens"} for run in side.runs]
    seconds = side.loaded["seconds"]
    return {**rates, "peak_memory_bytes": side.memory, "load_seconds": seconds, "rounds": rounds}


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], key: str) -> float:
    return float(ours[key] / theirs[key])


def _equal_tokens(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    """The share of new tokens up to the first that differs: whether both do the same work."""
    equal = total = 0
    for one, other in zip(ours, theirs, strict=True):
        pairs = list(zip(one["tokens"], other["tokens"], strict=True))
        total += len(pairs)
        equal += next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return equal / total
