"""What a validation found: checks with their limits, and figures that have none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from doge_export.validate.backends.base import BackendName
from doge_export.validate.run import Ties

__all__ = ["Check", "Report"]


@dataclass(frozen=True)
class Check:
    """One figure against its limit. `at_least` turns the comparison round.

    `name` is for people. What the figure is: of which `backend`, on the schedule of which name, by which
    `metric` (doge_export.validate.limits.FIGURES has those of schedules). None where it is of no backend, as
    the tokenizers, or of no schedule, as the weights."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    backend: BackendName | None = None
    schedule: str | None = None
    metric: str | None = None

    @property
    def passed(self) -> bool:
        """NaN passes no check."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON has it."""
        return {
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
            "at_least": self.at_least,
            "backend": self.backend,
            "schedule": self.schedule,
            "metric": self.metric,
        }


@dataclass
class Report:
    """All checks of one validation. `tie_rows` of `boundary_rows` had equal keys on both sides of the
    window's boundary; of the others the nearest were `nearest_margin` apart, relative to their size.
    `changed_rows` chose other keys or experts than the reference; keys that changed places were at most
    `widest_change` apart: some 1e-7 is the rounding of dt, more is a wrong choice. In `settled_rows` it was
    rounding, of keys at most `widest_settled` apart, and the reference was given their choice; in
    `settled_experts` tokens of a layer it was so with experts. `kernels`
    has the worst `max_abs_diff`, `kl_divergence` and `top1_agreement` of the native kernels against the
    reference; the figures beside it are of the graph in plain onnxruntime. All these are against a reference
    with the same weights, rounded ones too. `rounding` says what rounding costs, without a limit: the
    `kl_divergence` and `top1_agreement` with the model before its weights were rounded, each with its
    standard error (`..._stderr`), over `tokens` of a `text`. `limits_from`: where the limits come from.

    `cause`: one sentence, where a check fails. `drift`: part -> how far its result is from the reference's,
    on one `schedule`. `schedules`: all figures of every schedule. `margins`: rows by the distance at the
    boundary of the window (`keys`) and of the experts, in `bins`. `reference`: how far the reference is from
    itself. `greedy`: how long the greedy continuations agree. `tokenizer`: what was compared.
    `fully_masked_heads`, "blind_heads" in JSON: heads that masked every key for every query of all schedules,
    as some of generations 1 and 2 do."""

    checks: list[Check] = field(default_factory=list)
    max_abs_diff: float = 0.0
    kl_divergence: float = 0.0
    top1_agreement: float = 1.0
    boundary_rows: int = 0
    tie_rows: int = 0
    nearest_margin: float = float("inf")
    changed_rows: int = 0
    widest_change: float = 0.0
    settled_rows: int = 0
    settled_experts: int = 0
    widest_settled: float = 0.0
    kernels: dict[str, float] = field(default_factory=dict)
    rounding: Mapping[str, Any] = field(default_factory=dict)
    limits_from: str = ""
    cause: str | None = None
    drift: Mapping[str, Any] = field(default_factory=dict)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    margins: dict[str, list[Any]] = field(default_factory=dict)
    reference: list[dict[str, Any]] = field(default_factory=list)
    greedy: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    fully_masked_heads: list[str] | None = None
    omitted: list[str] = field(default_factory=list)
    subject: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if there is a check and none fails."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def add_figures(self, figures: Mapping[str, float]) -> None:
        """Let one schedule's figures count for the worst of all. NaN is the worst."""
        self.max_abs_diff = float(np.maximum(self.max_abs_diff, figures["max_abs_diff"]))
        self.kl_divergence = float(np.maximum(self.kl_divergence, figures["kl_divergence"]))
        self.top1_agreement = min(self.top1_agreement, figures["top1_agreement"])

    def add_ties(self, ties: Ties) -> None:
        """Count one run's ties at the window's boundary in."""
        self.boundary_rows += ties.rows
        self.tie_rows += ties.tied
        self.nearest_margin = min(self.nearest_margin, ties.nearest)

    def add_margins(self, bins: Sequence[str], keys: Sequence[int], experts: Sequence[int]) -> None:
        """Count one run's margins in."""
        for name, counts in (("keys", keys), ("experts", experts)):
            before = self.margins.get(name, [0] * len(bins))
            self.margins[name] = [int(one) + int(other) for one, other in zip(before, counts, strict=True)]
        self.margins["bins"] = list(bins)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "passed": self.passed,
            "checks": [check.to_dict() for check in self.checks],
            "max_abs_diff": self.max_abs_diff,
            "kl_divergence": self.kl_divergence,
            "top1_agreement": self.top1_agreement,
            "ties": {
                "boundary_rows": self.boundary_rows,
                "tied_rows": self.tie_rows,
                "nearest_margin": self.nearest_margin,
                "changed_rows": self.changed_rows,
                "widest_change": self.widest_change,
                "settled_rows": self.settled_rows,
                "settled_experts": self.settled_experts,
                "widest_settled": self.widest_settled,
            },
            "cause": self.cause,
            "drift": dict(self.drift),
            "schedules": self.schedules,
            "margins": self.margins,
            "reference": self.reference,
            "greedy": dict(self.greedy),
            "tokenizer": dict(self.tokenizer),
            "blind_heads": self.fully_masked_heads or [],
            "kernels": dict(self.kernels),
            "rounding": dict(self.rounding),
            "limits_from": self.limits_from,
            "omitted": self.omitted,
            "subject": dict(self.subject),
        }
