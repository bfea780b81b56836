"""What the runs of a bundle's backends are held to on one schedule, and what goes into the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from doge_export.core.bundle import Bundle
from doge_export.validate.backends.base import Backend, DecodeBackend, Shows
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels, why_not
from doge_export.validate.comparison import best_gaps, compare_selection, logit_figures
from doge_export.validate.limits import AT_LEAST, FIGURES, NEAR_BEST, Limits
from doge_export.validate.metrics import Selection
from doge_export.validate.report import Check, Report
from doge_export.validate.run import MARGINS, BestTokens, Run
from doge_export.validate.schedules import Call

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference

__all__ = ["Judge", "JudgedBackend", "add_checks", "judged_backends"]

_EMULATED = (
    "bfloat16 arithmetic on hardware: it was emulated, in float32 with every result rounded to bfloat16, "
    "since onnxruntime's CPU provider has no kernels for it"
)


@dataclass(frozen=True)
class JudgedBackend:
    """One that gives the logits of a bundle: how it is opened, and what those may differ by."""

    open: Callable[[], FunctionBodies | Kernels]
    limits: Mapping[str, float]


def judged_backends(bundle: Bundle, limits: Limits, omitted: list[str], quick: bool) -> list[JudgedBackend]:
    """The backends that run the bundle here; why one is left out goes to `omitted`."""
    backends = [JudgedBackend(lambda: FunctionBodies(bundle), limits.graph)]
    if bundle.manifest.cache.dtype == "bfloat16":
        omitted.append(_EMULATED)
    if reason := why_not(bundle):
        omitted.append(reason)
    else:
        backends.append(JudgedBackend(lambda: Kernels(bundle, one_graph=quick), limits.kernels))
    return backends


def add_checks(
    report: Report, backend: Backend, schedule: str, figures: Mapping[str, float], limits: Mapping[str, float]
) -> None:
    """Add a check for each of one schedule's figures that has a limit."""
    for metric, limit in limits.items():
        name = f"{schedule}{backend.suffix}: {FIGURES[metric]}"
        value, at_least = figures[metric], metric in AT_LEAST
        report.checks.append(Check(name, value, limit, at_least, backend.name, schedule, metric))


@dataclass(frozen=True)
class Judge:
    """Adds to `report` how far a backend is from the reference. `dtype` is the bundle's, and `reference`
    opens the judge, or gives the one that is open."""

    report: Report
    limits: Limits
    dtype: str
    reference: "Callable[[], Reference]"

    def judge(
        self,
        backend: FunctionBodies | Kernels,
        limits: Mapping[str, float],
        call: Call,
        references: list[Run],
        got: Run,
    ) -> None:
        """Hold `got`, what `backend` gave for `call`, to the nearest of `references`: the reference's run,
        and one with the graph's choices, which is added where it is the graph that is judged and only
        rounding is between them. Of a graph that shows what it chose, that one is nearest whose choices are
        the most alike: two keys may be so alike that the logits hardly tell which was taken."""
        selection = _selection(backend, call, references[0], got)
        if selection is not None and "selection" in limits and selection.share < 1:
            self._follow(call, references, got)
        alike = references
        if selection is not None and len(references) > 1:
            selections = [_selection(backend, call, run, got) for run in references]
            shares = [each.share for each in selections if each is not None]
            alike = [run for run, share in zip(references, shares, strict=True) if share == max(shares)]
        nearest = _nearest(call, got, alike)
        if nearest is not references[0]:
            selection = _selection(backend, call, nearest, got)
        figures = logit_figures(call, nearest, got, NEAR_BEST.get(self.dtype, 0.0))
        if isinstance(backend, Kernels):
            self._add_kernels(backend, limits, call, got, figures)
        else:
            self._add_graph(nearest, selection, figures)
            add_checks(self.report, backend, call[0].name, figures, limits)
        self.report.schedules.append({"name": f"{call[0].name}{backend.suffix}", **figures})

    def judge_decode(self, decode: DecodeGraph, call: Call, got: Run) -> None:
        """Hold decode.onnx on its function body to `got`, the logits of model.onnx in plain onnxruntime."""
        self._add_tokens(decode, call, got)

    def _follow(self, call: Call, references: list[Run], got: Run) -> None:
        """Add the reference's run with the choices of `got`, where rounding alone decided some of them."""
        run = self.reference().run(*call, follow=got)
        settled, report = run.settled, self.report
        report.settled_rows += settled.rows
        report.settled_experts += settled.experts
        report.widest_settled = max(report.widest_settled, settled.widest)
        if settled.rows or settled.experts:
            references.append(run)

    def _add_graph(self, expected: Run, selection: Selection | None, figures: dict[str, float]) -> None:
        report = self.report
        if selection is not None:
            figures["selection"] = selection.share
            report.changed_rows += selection.rows - selection.same
            report.widest_change = max(report.widest_change, selection.widest)
        else:
            figures["selection"] = float("nan")
        report.add_figures(figures)
        report.add_ties(expected.ties)
        report.add_margins(MARGINS, expected.ties.counts.tolist(), expected.expert_ties.counts.tolist())

    def _add_kernels(
        self,
        kernels: Kernels,
        limits: Mapping[str, float],
        call: Call,
        got: Run,
        figures: dict[str, float],
    ) -> None:
        worst = self.report.kernels
        worst["max_abs_diff"] = _largest(worst.get("max_abs_diff", 0.0), figures["max_abs_diff"])
        worst["kl_divergence"] = _largest(worst.get("kl_divergence", 0.0), figures["kl_divergence"])
        worst["top1_agreement"] = min(worst.get("top1_agreement", 1.0), figures["top1_agreement"])
        add_checks(self.report, kernels, call[0].name, figures, limits)
        if kernels.decode is not None:
            figures |= self._add_tokens(kernels.decode, call, got)

    def _add_tokens(self, decode: DecodeBackend, call: Call, got: Run) -> dict[str, float]:
        """Let the tokens of decode.onnx be near to the logits of the other graph, as the limits want it."""
        best = decode.run(*call).best
        assert best is not None
        figures = _best_figures(call, got, best, self.limits)
        add_checks(self.report, decode, call[0].name, figures, self.limits.decode)
        return figures


def _selection(backend: Backend, call: Call, expected: Run, got: Run) -> Selection | None:
    """How what was chosen compares; None of a backend that does not show it, and of a run that was
    refused."""
    if Shows.SELECTION not in backend.shows or got.stopped is not None:
        return None
    schedule, tokens = call
    return compare_selection(expected, got, tokens, schedule.steps)


def _nearest(call: Call, got: Run, references: Sequence[Run]) -> Run:
    """The one of `references` that is nearest to `got`."""
    if len(references) == 1:
        return references[0]
    return min(references, key=lambda run: logit_figures(call, run, got)["kl_divergence"])


def _best_figures(call: Call, got: Run, best: BestTokens, limits: Limits) -> dict[str, float]:
    gaps = best_gaps(got, best, *call)
    if "tokens" in limits.decode:
        return {"tokens": float((gaps <= limits.near).mean())}
    return {"best": float(gaps.max())}


def _largest(first: float, second: float) -> float:
    """The larger of the two; NaN where one is."""
    return float(np.maximum(first, second))
