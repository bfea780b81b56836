"""The ways to run a bundle, and what each is judged by on one schedule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from doge_export.bundle import Bundle
from doge_export.validate.candidate import Candidate
from doge_export.validate.figures import Selection, compare_best, compare_logits, compare_selection
from doge_export.validate.kernels import BestTokens, Kernels, why_not
from doge_export.validate.limits import AT_LEAST, FIGURES, NEAR_BEST, Limits
from doge_export.validate.reference import MARGINS, Run
from doge_export.validate.report import Check, Report
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["Side", "best_figures", "hold", "judge", "nearer", "selection_of", "sides"]

_EMULATED = (
    "bfloat16 arithmetic on hardware: it was emulated, in float32 with every result rounded to bfloat16, "
    "since onnxruntime's CPU provider has no kernels for it"
)


@dataclass(frozen=True)
class Side:
    """One way to run the bundle, and what it may differ by."""

    open: Callable[[], Candidate | Kernels]
    limits: Mapping[str, float]
    suffix: str = ""


def sides(bundle: Bundle, limits: Limits, omitted: list[str], quick: bool) -> list[Side]:
    """The ways in which the bundle runs here; why one is left out goes to `omitted`."""
    found = [Side(lambda: Candidate(bundle), limits.graph)]
    if bundle.manifest.cache.dtype == "bfloat16":
        omitted.append(_EMULATED)
    if reason := why_not(bundle):
        omitted.append(reason)
    else:
        found.append(Side(lambda: Kernels(bundle, one_graph=quick), limits.kernels, ", kernels"))
    return found


def selection_of(
    opened: Candidate | Kernels, call: tuple[Schedule, Tokens], expected: Run, got: Run
) -> Selection | None:
    """How what a graph chose compares; None of kernels, which do not show it, and of a run that was
    refused."""
    if isinstance(opened, Kernels) or got.stopped is not None:
        return None
    schedule, tokens = call
    return compare_selection(expected, got, tokens, schedule.steps)


def nearer(call: tuple[Schedule, Tokens], got: Run, judges: Sequence[Run]) -> Run:
    """The one of `judges` that is nearest to `got`."""
    if len(judges) == 1:
        return judges[0]
    real = call[0].compared(call[1])
    return min(judges, key=lambda run: compare_logits(run, got, real)["kl_divergence"])


def judge(
    report: Report,
    side: Side,
    opened: Candidate | Kernels,
    schedule: Schedule,
    tokens: Tokens,
    expected: Run,
    got: Run,
    decode: Limits,
    selection: Selection | None,
) -> None:
    """Add what differs between the reference and one side to `report`; `selection` is that of
    `selection_of`."""
    dtype = opened.bundle.manifest.cache.dtype
    limits = dict(side.limits)
    figures = compare_logits(expected, got, schedule.compared(tokens), NEAR_BEST.get(dtype, 0.0))
    if isinstance(opened, Kernels):
        worst = report.kernels
        worst["max_abs_diff"] = _largest(worst.get("max_abs_diff", 0.0), figures["max_abs_diff"])
        worst["kl_divergence"] = _largest(worst.get("kl_divergence", 0.0), figures["kl_divergence"])
        worst["top1_agreement"] = min(worst.get("top1_agreement", 1.0), figures["top1_agreement"])
        if best := opened.best(schedule, tokens):
            figures |= best_figures(got, best, schedule, tokens, decode)
            limits |= decode.decode
    else:
        if selection is not None:
            figures["selection"] = selection.share
            report.changed_rows += selection.rows - selection.same
            report.widest_change = max(report.widest_change, selection.widest)
        else:
            figures["selection"] = float("nan")
        report.add_figures(figures)
        report.boundary_rows += expected.ties.rows
        report.tie_rows += expected.ties.tied
        report.nearest_margin = min(report.nearest_margin, expected.ties.nearest)
        report.add_margins(MARGINS, expected.ties.counts.tolist(), expected.expert_ties.counts.tolist())
    hold(report, f"{schedule.name}{side.suffix}", figures, limits)


def hold(report: Report, schedule: str, figures: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Add the figures of one schedule, and a check for each that has a limit."""
    for name, limit in limits.items():
        label = f"{schedule}: {FIGURES[name]}"
        report.checks.append(Check(label, figures[name], limit, name in AT_LEAST))
    report.schedules.append({"name": schedule, **figures})


def best_figures(
    got: Run, best: BestTokens, schedule: Schedule, tokens: Tokens, limits: Limits
) -> dict[str, float]:
    """How near the tokens of decode.onnx are to the logits of the other graph, as the limits want it."""
    gaps = compare_best(got, best, schedule, tokens)
    if "tokens" in limits.decode:
        return {"tokens": float((gaps <= limits.near).mean())}
    return {"best": float(gaps.max())}


def _largest(first: float, second: float) -> float:
    """NaN where one is."""
    return float(np.maximum(first, second))
