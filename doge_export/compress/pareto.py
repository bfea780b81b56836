"""Which ways to store a model are worth choosing: KL against bytes against measured tokens per second.

Every candidate is a bundle, made as `quantize` makes it, judged on the last fifth of the text, which neither
calibration nor search sees, and timed in rounds over all of them. What is done is kept in a folder beside the
result, so that an interrupted run goes on.
"""

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.bench.machine import describe, usable_cpus
from doge_export.bench.turns import turn
from doge_export.compress.budget_search import (
    SEARCHED,
    SEARCHED_METHOD,
    Budget,
    parse_budget,
    search_bundle,
)
from doge_export.compress.calibration import Divergence
from doge_export.compress.mixed_precision import Study
from doge_export.compress.quantize_bundle import (
    changed_options,
    checkpoint_weights,
    judge,
    judged_windows,
    matrix_inputs,
    quantize_bundle,
    write_rounded,
)
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.journal import WORK_NAME, Journal, check_work
from doge_export.core.progress import Progress, silent, stages
from doge_export.graph.targets import get_target
from doge_export.weights import METHODS, PRECISIONS, Matrix, Scheme, check_method, parse_scheme, quantize

__all__ = ["SCHEMES", "Pareto", "dominates", "front", "pareto"]

#: What is tried unasked: every precision that the kernels have, rounded in every way but the last, which
#: takes minutes to be as good as the one before.
SCHEMES = tuple(
    str(Scheme(PRECISIONS[precision], method))
    for precision in get_target("ort-cpu").precisions
    if PRECISIONS[precision].rounds
    for method in METHODS.values()
    if not (method.tuned and method.scales_channels)
)
#: The largest searched mixture that is tried unasked, of the largest single scheme's bytes.
_ABOVE = 1.008
#: Speeds nearer than this are one: no round is quieter.
SAME_SPEED = 0.03

#: One way to store the model, for JSON.
Point = dict[str, Any]


@dataclass(frozen=True)
class Pareto:
    """How to measure: `schemes` as `quantize` takes them, `budgets` of searched mixtures as its --max-bytes
    takes them (None: the sizes that the schemes have, those halfway between, and one a little above), and
    `rounds` of greedy decoding."""

    schemes: Sequence[str] = SCHEMES
    budgets: Sequence[str] | None = None
    rounds: int = 5
    prompt_tokens: int = 32
    new_tokens: int = 128
    threads: int | None = None


@dataclass(frozen=True)
class _Candidate:
    """`make` writes the bundle and gives what it costs; `command` does the same."""

    name: str
    command: str
    make: Callable[[Path], Divergence | None]


def pareto(
    bundle: Path | str,
    text: str,
    work: Path,
    settings: Pareto | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure all candidates of a bundle in full precision; `work` is a folder for bundles and journals,
    which the caller removes when the result is safe. `progress` gets the candidates, and their rounds.

    Returns: JSON: `points`, each with `name`, `command`, `types`, `bytes`, `kl_divergence` and its standard
    error `kl_error` (calibrate.Divergence), `top1_agreement`,
    `perplexity`, `tokens_per_second` and `front`, and what it was measured on.

    Raises:
        DogeExportError: the bundle is rounded already or has no kernels, a scheme or budget does not exist,
            or the text is too short; or torch is missing, by which searched mixtures learn.
    """
    settings = settings or Pareto()
    source = Bundle.open(bundle)
    _check(source, settings)
    threads = usable_cpus() if settings.threads is None else settings.threads
    folder, journal = _work_folder(source, text, work)
    study = Study(source, text, method=SEARCHED_METHOD, journal=folder / "search", progress=progress)
    points = _made_all(source, text, study, settings, folder, journal, progress)
    count = len(points)
    points.append(_full(source, points))
    layouts = {point["layout"]: Path(point.pop("bundle")) for point in points}
    progress.planned(count + settings.rounds * len(layouts))
    speeds = _speeds(layouts, settings, threads, journal, source.config.vocab_size, progress)
    for point in points:
        rounds = speeds[point.pop("layout")]
        point |= {"tokens_per_second": statistics.median(rounds), "rounds": rounds}
        point["of_full"] = point["bytes"] / source.model_bytes
    for point, on in zip(points, front(points), strict=True):
        point["front"] = on
    return {
        "bundle": str(source.path),
        "options": source.manifest.options.to_dict(),
        "judged_tokens": int(judged_windows(source, text).size),
        "searched_tokens": study.tokens,
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "threads": threads,
        "machine": describe(),
        "points": points,
    }


def _work_folder(source: Bundle, text: str, work: Path) -> tuple[Path, Journal]:
    """A folder in `work` for this bundle and text alone, and the journal in it; those of others are
    removed."""
    subject = {
        "judged": [field.name for field in fields(Divergence)],
        "weights": {name: each.sha256 for name, each in source.manifest.files.items() if "onnx" in name},
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "cpu": describe()["cpu"],
    }
    check_work(work)
    folder = work / hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:WORK_NAME]
    for other in work.iterdir() if work.is_dir() else ():
        if other != folder:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder, Journal(folder / "journal", subject)


def _made_all(
    source: Bundle,
    text: str,
    study: Study,
    settings: Pareto,
    folder: Path,
    journal: Journal,
    progress: Progress,
) -> list[Point]:
    """Every candidate as a bundle in `folder`, judged: single schemes, searched mixtures, float16."""
    points: list[Point] = []

    def make(candidates: list[_Candidate], more: int = 0) -> None:
        progress.planned(len(points) + len(candidates) + more)
        for candidate in candidates:
            progress(0, candidate.name)
            points.append(_point_of(candidate, folder / candidate.name, journal))
            progress(1, candidate.name)

    inside = stages(progress)
    make(_singles(source, text, settings, inside), len(settings.budgets or ()))
    sizes = sorted({point["bytes"] for point in points})
    make(_searched(source, text, study, _budgets(source, settings, sizes), stages(progress, "searching: ")))
    if source.manifest.options.dtype == "float32":
        make([_half(source, text, inside)])
    return points


def dominates(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `one` is no worse than `other` in bytes, KL and speed, and better in one of them. Speeds within
    SAME_SPEED are one."""
    bytes_ = one["bytes"] - other["bytes"]
    kl = one["kl_divergence"] - other["kl_divergence"]
    faster = one["tokens_per_second"] / other["tokens_per_second"] - 1
    if bytes_ > 0 or kl > 0 or faster < -SAME_SPEED:
        return False
    return bool(bytes_ < 0 or kl < 0 or faster > SAME_SPEED)


def front(points: Sequence[Mapping[str, Any]]) -> list[bool]:
    """For each point, whether none dominates it."""
    return [not any(dominates(other, point) for other in points) for point in points]


def _check(source: Bundle, settings: Pareto) -> None:
    changed_options(source)  # refuses what is rounded already
    options = source.manifest.options
    if options.target != "ort-cpu":
        raise DogeExportError(
            f"{source.path} is made for --target {options.target}, which has one way to store weights "
            "in 8 bits.",
            "Give a bundle of --target ort-cpu.",
        )
    if settings.rounds < 1:
        raise DogeExportError(f"--rounds {settings.rounds} is too few.", "Give at least 1.")
    for method in (*(parse_scheme(scheme).method for scheme in settings.schemes), SEARCHED_METHOD):
        check_method(method)
    for budget in settings.budgets or ():
        parse_budget(budget, source.model_bytes)
    slots, needed = source.manifest.cache.max_length, settings.prompt_tokens + settings.new_tokens
    if slots is not None and needed > slots:
        raise DogeExportError(
            f"{needed} tokens do not fit in the bundle's static cache of {slots}.",
            "Ask for fewer, or export with a larger --max-length.",
        )


def _singles(source: Bundle, text: str, settings: Pareto, progress: Progress) -> list[_Candidate]:
    @cache
    def known_inputs() -> dict[str, Matrix]:
        return matrix_inputs(source, text, progress)

    def single(scheme: str) -> _Candidate:
        def make(folder: Path) -> Divergence | None:
            known = known_inputs() if parse_scheme(scheme).method != METHODS["nearest"] else None
            return quantize_bundle(
                source.path, folder, scheme, text, known_inputs=known, force=True, progress=progress
            ).divergence

        return _Candidate(scheme, f"quantize BUNDLE -o DIR --scheme {scheme} --text FILE", make)

    return [single(scheme) for scheme in settings.schemes]


def _searched(
    source: Bundle, text: str, study: Study, budgets: Sequence[int], progress: Progress
) -> list[_Candidate]:
    def searched(budget: int) -> _Candidate:
        def make(folder: Path) -> Divergence | None:
            return search_bundle(
                study, folder, text, Budget(max_bytes=budget), force=True, progress=progress
            ).divergence

        name = f"{SEARCHED} {budget / source.model_bytes:.3f}"
        command = f"quantize BUNDLE -o DIR --scheme {SEARCHED} --max-bytes {budget} --text FILE"
        return _Candidate(name, command, make)

    return [searched(budget) for budget in budgets]


def _half(source: Bundle, text: str, progress: Progress) -> _Candidate:
    def make(folder: Path) -> Divergence | None:
        exported = write_rounded(
            source,
            folder,
            changed_options(source, dtype="float16"),
            lambda name, weight, form: quantize(weight, form),  # nothing is rounded
            checkpoint_weights(source),
            force=True,
            progress=progress,
        )
        return judge(source, exported.bundle, judged_windows(source, text), progress)

    command = "export -m MODEL -o DIR --recipe BUNDLE/recipe.toml --dtype float16"
    return _Candidate("float16", command, make)


def _budgets(source: Bundle, settings: Pareto, sizes: Sequence[int]) -> list[int]:
    """Bytes of each mixture to search; `sizes` are those of the single schemes, in order."""
    if settings.budgets is not None:
        return list(dict.fromkeys(parse_budget(each, source.model_bytes) for each in settings.budgets))
    between = [(low + high) // 2 for low, high in pairwise(sizes)]
    return sorted({*sizes, *between, int(sizes[-1] * _ABOVE)})


def _point_of(candidate: _Candidate, folder: Path, journal: Journal) -> Point:
    """What the candidate costs, once it is there."""
    kept = journal.get(candidate.name)
    if kept is None or not folder.is_dir():
        cost = candidate.make(folder)
        assert cost is not None  # there is a text
        kept = {"judged": asdict(cost), "bytes": Bundle.open(folder).model_bytes}
        journal.put(candidate.name, kept)
    options = Bundle.open(folder).manifest.options
    types = dict(options.types)
    layout = {"dtype": options.dtype, "precision": options.precision, "types": types or None}
    return {
        "name": candidate.name,
        "command": candidate.command,
        "types": types,
        "bytes": kept["bytes"],
        **kept["judged"],
        "bundle": str(folder),
        "layout": json.dumps(layout, sort_keys=True),
    }


def _full(source: Bundle, points: Sequence[Mapping[str, Any]]) -> Point:
    """The bundle as it is, which the others are measured against."""
    perplexity = points[0]["base_perplexity"]
    dtype = source.manifest.options.dtype
    return {
        **dict.fromkeys(("perplexity", "base_perplexity"), perplexity),
        "name": "fp32" if dtype == "float32" else dtype,
        "command": "",
        "types": {},
        "bytes": source.model_bytes,
        "kl_divergence": 0.0,
        "kl_error": 0.0,
        "top1_agreement": 1.0,
        "top1_error": 0.0,
        "tokens": points[0]["tokens"],
        "bundle": str(source.path),
        "layout": "full",
    }


def _speeds(
    layouts: Mapping[str, Path],
    settings: Pareto,
    threads: int,
    journal: Journal,
    vocab: int,
    progress: Progress,
) -> dict[str, list[float]]:
    """Tokens per second of each layout in each round. Bundles that store the same tensors in the same types
    do the same work, so that one stands for all."""
    prompts = np.random.default_rng(0).integers(0, vocab, (settings.rounds, settings.prompt_tokens)).tolist()
    speeds: dict[str, list[float]] = {layout: [] for layout in layouts}
    for number, prompt in enumerate(prompts):
        for layout, bundle in layouts.items():
            progress(0, f"timing, round {number + 1} of {len(prompts)}")
            asked = f"{len(prompt)} + {settings.new_tokens} tokens, threads: {threads}"
            key = f"round {number} of {layout}, {asked}"
            if journal.get(key) is None:
                journal.put(key, turn(bundle, prompt, settings.new_tokens, threads))
            speeds[layout].append(journal.get(key))
            progress(1, f"timing, round {number + 1} of {len(prompts)}")
    return speeds
