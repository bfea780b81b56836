"""Run every schedule on both sides and turn the differences into checks."""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.bundle import Bundle
from doge_export.checkpoint import Checkpoint
from doge_export.errors import DogeExportError
from doge_export.quantize import PRECISIONS
from doge_export.validate.candidate import Candidate
from doge_export.validate.reference import Reference, Run
from doge_export.validate.report import Check, Report
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens, plan

__all__ = ["TOLERANCES", "Selection", "compare_selection", "validate"]

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

#: dtype -> how far below the reference's best logit, relative to it, a choice may lie and still agree. Of
#: bfloat16, two steps: its logits often tie, and one position is all that some schedules have.
_NEAR_BEST = {"bfloat16": 2**-6}

_EMULATED = (
    "bfloat16 arithmetic on hardware: it was emulated, in float32 with every result rounded to bfloat16, "
    "since onnxruntime's CPU provider has no kernels for it"
)


def validate(
    bundle: Bundle,
    reference_folder: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    tolerance: float | None = None,
    advance: Callable[[int, str], None] = lambda steps, name: None,
) -> Report:
    """Compare `bundle` with transformers' model of the checkpoint it was exported from.

    Where the bundle's weights are rounded to fewer bits, so are the reference's: the graph is judged for
    what it computes with them, and what the rounding costs is a figure without a limit.

    `tolerance` overrides the largest absolute difference of float32 logits. `quick` leaves out what
    would take the reference more than seconds, and says so in `omitted`. `advance` is told of every
    finished schedule.

    Raises:
        DogeExportError: the bundle is damaged, or the reference is another model than it was made from.
    """
    bundle.verify()
    manifest = bundle.manifest
    dtype = str(manifest.options["dtype"])
    per_token = manifest.options["routing"] == "per-token"
    precision = str(manifest.options.get("precision", "fp32"))
    precision = {"none": "fp32"}.get(precision, precision)  # as older bundles call it
    if precision not in PRECISIONS:
        raise DogeExportError(
            f"{bundle.path} has the precision {precision!r}, which this version does not know.",
            "Use the doge-export that wrote it.",
        )
    if Checkpoint.open(reference_folder).config != bundle.config:
        raise DogeExportError(
            f"The config.json of {reference_folder} is not the one that {bundle.path} was exported from.",
            "Give --reference the checkpoint of this bundle.",
        )
    schedules, omitted = plan(bundle.config, manifest.cache.max_length, quick)
    calls = [(schedule, draw_tokens(schedule, bundle.config.vocab_size, seed)) for schedule in schedules]
    runs = _reference_runs(reference_folder, dtype, per_token, precision, calls)
    if quick:  # what it runs is small: keep it, and let go of the reference before the candidate loads
        runs = iter(list(runs))
        gc.collect()  # its hooks refer back to it
    candidate = Candidate(bundle)
    if candidate.emulated:
        omitted = [*omitted, _EMULATED]
    limits = dict(TOLERANCES[dtype])
    if precision != "fp32" and "max_abs_diff" in limits:
        limits["max_abs_diff"] = _ROUNDED_LIMIT
    if tolerance is not None and "max_abs_diff" in limits:
        limits["max_abs_diff"] = tolerance
    report = Report(
        omitted=omitted,
        subject={"reference": reference_folder.name, "options": dict(manifest.options), "seed": seed},
    )
    agreements, divergences = [], []
    for (schedule, tokens), expected in zip(calls, runs, strict=True):
        got = candidate.run(schedule, tokens)
        real = schedule.compared(tokens)
        figures = _figures(expected, got, real, _NEAR_BEST.get(dtype, 0.0))
        selection = compare_selection(expected, got, tokens, schedule.steps)
        figures["selection"] = selection.share
        report.changed_rows += selection.rows - selection.same
        report.widest_change = max(report.widest_change, selection.widest)
        for name, limit in limits.items():
            label = f"{schedule.name}: {_LABELS[name]}"
            report.checks.append(
                Check(label, figures[name], limit, at_least=name in ("selection", "top1_agreement"))
            )
        report.max_abs_diff = max(report.max_abs_diff, figures["max_abs_diff"])
        divergences.append(figures["kl_divergence"])
        agreements.append(figures["top1_agreement"])
        report.boundary_rows += expected.ties.rows
        report.tie_rows += expected.ties.tied
        report.nearest_margin = min(report.nearest_margin, expected.ties.nearest)
        advance(1, schedule.name)
    report.kl_divergence = float(np.max(divergences, initial=0.0))
    report.top1_agreement = float(np.min(agreements, initial=1.0))
    if precision != "fp32":
        report.rounding = _rounding(Reference(reference_folder, dtype, per_token), candidate, calls)
    return report


def _reference_runs(
    folder: Path, dtype: str, per_token: bool, precision: str, calls: list[tuple[Schedule, Tokens]]
) -> Iterator[Run]:
    """Each schedule in the reference, which lives as long as this does."""
    reference = Reference(folder, dtype, per_token, precision)
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
    figures = _figures(expected, got, schedule.compared(tokens))
    return {
        "schedule": schedule.name,
        **{name: figures[name] for name in ("kl_divergence", "top1_agreement")},
    }


_ROWS = 128  # compared at a time
_ENOUGH = 32  # tokens
_LABELS = {
    "max_abs_diff": "max abs diff of logits",
    "selection": "same keys and experts",
    "kl_divergence": "KL divergence",
    "top1_agreement": "top-1 agreement",
}


def _figures(expected: Run, got: Run, real: npt.NDArray[np.bool_], near: float = 0.0) -> dict[str, float]:
    """Over real positions: largest difference, mean KL(reference || candidate), and the share where the
    candidate's choice is the reference's best, or `near` it, relative to the best."""
    first, second = expected.logits[real], got.logits[real]
    difference, divergence, agreeing = 0.0, 0.0, 0
    for at in range(0, len(first), _ROWS):  # a vocabulary of float64 rows is large
        mine, theirs = first[at : at + _ROWS], second[at : at + _ROWS]
        p, q = _log_softmax(mine), _log_softmax(theirs)
        choice, best = theirs.argmax(-1), mine.max(-1)
        agree = mine.argmax(-1) == choice
        if near:
            agree |= np.take_along_axis(mine, choice[:, None], -1)[:, 0] >= best - near * np.abs(best)
        difference = float(np.maximum(difference, np.abs(mine - theirs).max()))  # keeps NaN
        divergence += float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0).sum())
        agreeing += int(agree.sum())
    return {
        "max_abs_diff": difference,
        "kl_divergence": divergence / len(first),
        "top1_agreement": agreeing / len(first),
    }


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


@dataclass(frozen=True)
class Selection:
    """How the choices compare. `same` of `rows` sets agree: of keys, one a layer, kv head and real token;
    of experts, one a layer and real token. Where keys differ, `widest` is the largest distance in dt of
    two that changed places, relative to their size: some 1e-7 is rounding."""

    same: int = 0
    rows: int = 0
    widest: float = 0.0

    @property
    def share(self) -> float:
        """1 where there was nothing to choose."""
        return self.same / self.rows if self.rows else 1.0


def compare_selection(expected: Run, got: Run, tokens: Tokens, steps: tuple[int, ...]) -> Selection:
    """The reference's sets of keys and experts against the candidate's."""
    same, total, widest, at = 0, 0, 0.0, 0
    for call, count in enumerate(steps):
        real = tokens.real[:, at : at + count]
        at += count
        for mine, theirs, dt in zip(expected.keys[call], got.keys[call], expected.weights[call], strict=True):
            # A sliding cache of the reference may have forgotten keys that neither side can see.
            shared = min(mine.shape[-1], theirs.shape[-1])
            equal = (mine[..., -shared:] == theirs[..., -shared:]).all(-1)
            equal &= ~theirs[..., :-shared].any(-1) & ~mine[..., :-shared].any(-1)
            rows = np.broadcast_to(real[:, None], equal.shape)
            same, total = same + int(equal[rows].sum()), total + int(rows.sum())
            for row, head, query in np.argwhere(~equal & rows):
                changed = mine[row, head, query, -shared:] != theirs[row, head, query, -shared:]
                sizes = dt[row, head, -shared:][changed]
                widest = max(widest, float(np.ptp(sizes) / np.abs(sizes).max()) if len(sizes) else np.inf)
        for experts, others in zip(expected.experts[call], got.experts[call], strict=True):
            equal = (np.sort(experts, -1) == np.sort(others, -1)).all(-1)[real.reshape(-1)]
            same, total = same + int(equal.sum()), total + equal.size
    return Selection(same, total, widest)
