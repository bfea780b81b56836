"""Run every schedule on both sides and turn the differences into checks."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.bundle import Bundle
from doge_export.checkpoint import Checkpoint
from doge_export.errors import DogeExportError
from doge_export.memory import release_memory
from doge_export.quantize import METHODS, PRECISIONS, Precision, named_precision
from doge_export.validate.candidate import Candidate
from doge_export.validate.figures import compare_best, compare_logits, compare_selection
from doge_export.validate.kernels import Kernels, why_not
from doge_export.validate.reference import Reference, Run
from doge_export.validate.report import Check, Report
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens, plan
from doge_export.validate.stored import stored_activations, stored_weights

__all__ = ["TOLERANCES", "validate"]

#: dtype -> what the logits may differ by, and whether the chosen keys and experts must be the same.
#: In float16 near-ties fall to the other side of the boundary by rounding, and logits follow: there
#: the distributions are compared, and the sets are reported.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"max_abs_diff": 1e-4, "selection": 1.0},
    "float16": {"kl_divergence": 1e-2, "top1_agreement": 0.95},
    # Measured (docs/parity.md): KL up to 1e-3 on the fixtures, 4e-3 on random weights; a frozen window 1e-2.
    "bfloat16": {"kl_divergence": 1e-2, "top1_agreement": 0.9},
}

#: What float32 logits may differ by where the weights are stored in fewer bits; both sides have the same.
_ROUNDED_LIMIT = 1e-3

#: What the native kernels may differ by there: they multiply such weights with activations of 16 bits, so
#: that a near-tie may fall to the other side of the boundary.
_ROUNDED_KERNELS = {"kl_divergence": 1e-4, "top1_agreement": 0.98}

#: What a graph may differ by that rounds activations to int8, from a reference that rounds them so too: one
#: at the border of two integers may fall to the other side, and a near-tie of keys with it
#: (measured on the fixtures, quick schedules: KL up to 7e-4, top-1 down to 97.9 %).
_STATIC = {"kl_divergence": 2e-3, "top1_agreement": 0.95}

#: What the tokens of decode.onnx may be away from the logits of model.onnx, relative to the best, in float32.
_BEST_LIMIT = 1e-4
#: "rounded" weights or dtype -> how near they are to be otherwise, and for which share of the tokens. The two
#: graphs hold the keys in another order, so that a near-tie may fall to the other side in one of them.
_NEAR_TOKENS = {"rounded": (1e-3, 0.98), "float16": (2**-8, 0.95)}

#: dtype -> how far below the reference's best logit, relative to it, a choice may lie and still agree. Of
#: bfloat16, two steps: its logits often tie, and one position is all that some schedules have.
_NEAR_BEST = {"bfloat16": 2**-6}

_LABELS = {
    "max_abs_diff": "max abs diff of logits",
    "selection": "same keys and experts",
    "kl_divergence": "KL divergence",
    "top1_agreement": "top-1 agreement",
    "best": "tokens of decode.onnx",
    "tokens": "tokens of decode.onnx",
}

_ENOUGH = 32  # tokens

_EMULATED = (
    "bfloat16 arithmetic on hardware: it was emulated, in float32 with every result rounded to bfloat16, "
    "since onnxruntime's CPU provider has no kernels for it"
)


@dataclass(frozen=True)
class _Side:
    """One way to run the bundle, and what it may differ by."""

    open: Callable[[], Candidate | Kernels]
    limits: Mapping[str, float]
    suffix: str = ""


def validate(
    bundle: Bundle,
    reference_folder: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    tolerance: float | None = None,
    advance: Callable[[int, str], None] = lambda steps, name: None,
) -> Report:
    """Compare `bundle` with transformers' model of the checkpoint it was exported from: its graph in plain
    onnxruntime, and the same on the native kernels where they are built.

    Where the bundle's weights are rounded to fewer bits, so are the reference's: the graph is judged for what
    it computes with them, and what the rounding costs is a figure without a limit. Rounding to nearest is
    done again; of weights that were rounded with a text the reference gets what the bundle stores. Where
    activations are rounded too, the reference rounds them with the same scales.

    `tolerance` overrides the largest absolute difference of float32 logits. `quick` leaves out what
    would take the reference more than seconds, and says so in `omitted`. `advance` is told of every
    finished schedule.

    Raises:
        DogeExportError: the bundle is damaged, or the reference is another model than it was made from.
    """
    bundle.verify()
    manifest = bundle.manifest
    dtype, precision = str(manifest.options["dtype"]), _precision(bundle)
    per_token = manifest.options["routing"] == "per-token"
    if Checkpoint.open(reference_folder).config != bundle.config:
        raise DogeExportError(
            f"The config.json of {reference_folder} is not the one that {bundle.path} was exported from.",
            "Give --reference the checkpoint of this bundle.",
        )
    schedules, omitted = plan(bundle.config, manifest.cache.max_length, quick)
    calls = [(schedule, draw_tokens(schedule, bundle.config.vocab_size, seed)) for schedule in schedules]
    stored = None
    rounding = str(manifest.options.get("rounding", "nearest"))
    if rounding != "nearest":  # nobody can round so again
        stored = stored_weights(bundle, rounding in METHODS and METHODS[rounding].scales_channels)
    activations = None
    static = manifest.options.get("precision") == "w8a8"
    if static:
        stored = stored_weights(bundle, folded=manifest.options.get("smooth") is not None)
        activations = stored_activations(bundle)
    runs = _reference_runs(reference_folder, dtype, per_token, precision, stored, activations, calls)
    report = Report(
        omitted=omitted,
        subject={"reference": reference_folder.name, "options": dict(manifest.options), "seed": seed},
    )
    sides = _sides(bundle, dtype, precision, tolerance, omitted, quick)
    if quick:  # what it runs is small: keep it, and have one model in memory at a time
        expected = list(runs)
        for side in sides:
            gc.collect()  # the model before refers to itself by its hooks
            release_memory()
            _judge_all(report, side, calls, expected, advance)
    else:  # the logits of all schedules would be more than the models
        both = [side.open() for side in sides]
        for (schedule, tokens), run in zip(calls, runs, strict=True):
            for side, opened in zip(sides, both, strict=True):
                _judge(report, side, opened, schedule, tokens, run, opened.run(schedule, tokens))
                advance(1, schedule.name + side.suffix)
    if precision.rounds or static:
        report.rounding = _rounding(Reference(reference_folder, dtype, per_token), Candidate(bundle), calls)
    return report


def _precision(bundle: Bundle) -> Precision:
    precision = str(bundle.manifest.options.get("precision", "fp32"))
    precision = {"none": "fp32"}.get(precision, precision)  # as older bundles call it
    if precision not in PRECISIONS:
        raise DogeExportError(
            f"{bundle.path} has the precision {precision!r}, which this version does not know.",
            "Use the doge-export that wrote it.",
        )
    return named_precision(precision, bundle.manifest.options.get("types"))


def _sides(
    bundle: Bundle, dtype: str, precision: Precision, tolerance: float | None, omitted: list[str], quick: bool
) -> list[_Side]:
    """The ways in which the bundle runs here; why one is left out goes to `omitted`."""
    limits = dict(TOLERANCES[dtype])
    if precision.rounds and "max_abs_diff" in limits:
        limits["max_abs_diff"] = _ROUNDED_LIMIT
    if tolerance is not None and "max_abs_diff" in limits:
        limits["max_abs_diff"] = tolerance
    if bundle.manifest.options.get("precision") == "w8a8":
        limits = dict(_STATIC)
    sides = [_Side(lambda: Candidate(bundle), limits)]
    if dtype == "bfloat16":
        omitted.append(_EMULATED)
    if reason := why_not(bundle):
        omitted.append(reason)
    else:
        rounded = precision.rounds and dtype == "float32"
        own = dict(_ROUNDED_KERNELS) if rounded else dict(limits)
        own.pop("selection", None)  # the kernels do not tell
        sides.append(_Side(lambda: Kernels(bundle, one_graph=quick), own, ", kernels"))
    return sides


def _judge(
    report: Report,
    side: _Side,
    opened: Candidate | Kernels,
    schedule: Schedule,
    tokens: Tokens,
    expected: Run,
    got: Run,
) -> None:
    """Add what differs between the reference and one side to `report`."""
    dtype = opened.bundle.manifest.cache.dtype
    limits = dict(side.limits)
    figures = compare_logits(expected, got, schedule.compared(tokens), _NEAR_BEST.get(dtype, 0.0))
    if isinstance(opened, Kernels):
        worst = report.kernels
        worst["max_abs_diff"] = _largest(worst.get("max_abs_diff", 0.0), figures["max_abs_diff"])
        worst["kl_divergence"] = _largest(worst.get("kl_divergence", 0.0), figures["kl_divergence"])
        worst["top1_agreement"] = min(worst.get("top1_agreement", 1.0), figures["top1_agreement"])
        if best := opened.best(schedule, tokens):
            gaps = compare_best(got, best, schedule)
            kind = "rounded" if dtype == "float32" and _precision(opened.bundle).rounds else dtype
            if kind in _NEAR_TOKENS:
                near, limits["tokens"] = _NEAR_TOKENS[kind]
                figures["tokens"] = float((gaps <= near).mean())
            else:
                figures["best"], limits["best"] = float(gaps.max()), _BEST_LIMIT
    else:
        selection = compare_selection(expected, got, tokens, schedule.steps)
        figures["selection"] = selection.share
        report.changed_rows += selection.rows - selection.same
        report.widest_change = max(report.widest_change, selection.widest)
        report.max_abs_diff = _largest(report.max_abs_diff, figures["max_abs_diff"])
        report.kl_divergence = _largest(report.kl_divergence, figures["kl_divergence"])
        report.top1_agreement = min(report.top1_agreement, figures["top1_agreement"])
        report.boundary_rows += expected.ties.rows
        report.tie_rows += expected.ties.tied
        report.nearest_margin = min(report.nearest_margin, expected.ties.nearest)
    for name, limit in limits.items():
        label = f"{schedule.name}{side.suffix}: {_LABELS[name]}"
        at_least = name in ("selection", "top1_agreement", "tokens")
        report.checks.append(Check(label, figures[name], limit, at_least))


def _judge_all(
    report: Report,
    side: _Side,
    calls: list[tuple[Schedule, Tokens]],
    expected: list[Run],
    advance: Callable[[int, str], None],
) -> None:
    """All schedules on one side, which is in memory for as long as this lasts."""
    opened = side.open()
    given: Iterable[Run] = (opened.run(schedule, tokens) for schedule, tokens in calls)
    if isinstance(opened, Kernels):
        given = list(given)  # before its other graph is asked for the first time
    for (schedule, tokens), run, got in zip(calls, expected, given, strict=True):
        _judge(report, side, opened, schedule, tokens, run, got)
        advance(1, schedule.name + side.suffix)


def _largest(first: float, second: float) -> float:
    """NaN where one is."""
    return float(np.maximum(first, second))


def _reference_runs(
    folder: Path,
    dtype: str,
    per_token: bool,
    precision: Precision,
    stored: Mapping[str, Any] | None,
    activations: Mapping[str, float] | None,
    calls: list[tuple[Schedule, Tokens]],
) -> Iterator[Run]:
    """Each schedule in the reference, which lives as long as this does."""
    reference = Reference(folder, dtype, per_token, precision, stored, activations)
    for schedule, tokens in calls:
        yield reference.run(schedule, tokens)


def _rounding(
    reference: Reference, candidate: Candidate, calls: list[tuple[Schedule, Tokens]]
) -> Mapping[str, Any]:
    """What the rounding of the weights costs, on the shortest schedule that says enough."""
    lengths = sorted(((schedule.length, at) for at, (schedule, _) in enumerate(calls)))
    at = next((at for length, at in lengths if length >= _ENOUGH), lengths[-1][1])
    schedule, tokens = calls[at]
    expected, got = reference.run(schedule, tokens, record=False), candidate.run(schedule, tokens)
    figures = compare_logits(expected, got, schedule.compared(tokens))
    del figures["max_abs_diff"]
    return {"schedule": schedule.name, **figures}
