"""The one sentence for a report that misses, and the table of drift."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from doge_export.core.bundle import Bundle
from doge_export.validate.backends.base import BackendName
from doge_export.validate.diagnosis.cause import with_weights
from doge_export.validate.diagnosis.locate import (
    drift_limit,
    locate_decode,
    locate_graph,
    locate_kernels,
    simplest,
)
from doge_export.validate.limits import MULTI_STEP
from doge_export.validate.report import Report
from doge_export.validate.schedules import Call

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference
    from doge_export.validate.diagnosis.weights import OtherWeight

__all__ = ["add_drift", "explain"]

_MULTI_STEP = (
    "decode.onnx only (model.onnx agrees): how it goes on by itself, for the tokens that it makes in one "
    "call are not those that it makes call by call"
)


def explain(
    report: Report,
    bundle: Bundle,
    reference: "Reference",
    calls: list[Call],
    weights: "Mapping[str, list[OtherWeight]]",
    rounded: bool,
) -> None:
    """Put into the report where it starts to miss, if it does: in the graph if that misses, else in what is
    built upon it. `weights`: those of each file that are not the checkpoint's. `rounded`: whether the bundle
    stores some in fewer bits."""
    model = weights[bundle.model_path.name]
    sentence: str | None
    if missed := _missed(report, calls, BackendName.FUNCTION_BODIES):
        call = simplest(missed)
        sentence, table = locate_graph(bundle, reference, call)
        report.drift = _as_drift(table, call, bundle)
    else:
        sentence = _built_upon(report, bundle, reference, calls, bool(model), rounded)
    if model:
        sentence = with_weights(sentence, model)
    elif others := [weight for of_file in weights.values() for weight in of_file]:
        sentence = f"decode.onnx only (model.onnx agrees): {with_weights(None, others)}"
    if sentence is None and not report.passed:
        sentence = next(check.name for check in report.checks if not check.passed)
    report.cause = sentence


def add_drift(report: Report, bundle: Bundle, reference: "Reference", call: Call) -> None:
    """Add to the report the table of drift of a graph that agrees."""
    _, table = locate_graph(bundle, reference, call)
    report.drift = _as_drift(table, call, bundle)


def _built_upon(
    report: Report,
    bundle: Bundle,
    reference: "Reference",
    calls: list[Call],
    other_weights: bool,
    rounded: bool,
) -> str | None:
    """What is wrong where the graph agrees; None where nothing is, or where `other_weights` are."""
    if not other_weights:
        if missed := _missed(report, calls, BackendName.KERNELS):
            return locate_kernels(bundle, reference, simplest(missed), rounded)
        if missed := _missed(report, calls, BackendName.DECODE_GRAPH, BackendName.DECODE_KERNELS):
            several = [call for call in missed if len(call[0].steps) > 1]
            return locate_decode(bundle, reference, simplest(several or missed), rounded)
    if any(check.metric == MULTI_STEP and not check.passed for check in report.checks):
        return _MULTI_STEP
    return None


def _missed(report: Report, calls: list[Call], *backends: BackendName) -> list[Call]:
    """The calls in which a check of one of `backends` misses, in the order of the checks."""
    known = {schedule.name: (schedule, tokens) for schedule, tokens in calls}
    missed = [check for check in report.checks if not check.passed and check.backend in backends]
    return [known[check.schedule] for check in missed if check.schedule in known]


def _as_drift(table: Mapping[str, float], call: Call, bundle: Bundle) -> dict[str, Any]:
    return {"schedule": call[0].name, "limit": drift_limit(bundle), "parts": dict(table)}
