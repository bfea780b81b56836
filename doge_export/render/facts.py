"""What lines and pages both ask of a report."""

__all__ = ["dtype_of", "is_rounded", "missed_checks", "scheme_of", "text_read"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doge_export.validate import Report

_RANDOM = "random tokens"  # as the report names them


def dtype_of(report: "Report") -> str:
    """What the bundle computes in."""
    return str(report.subject.get("options", {}).get("dtype", "float32"))


def scheme_of(report: "Report") -> str | None:
    """The scheme that the weights are rounded to; None where they are not, or each to a type of its own."""
    precision = report.subject.get("options", {}).get("precision")
    return None if precision in (None, "fp32", "none") else str(precision)


def is_rounded(report: "Report") -> bool:
    """Whether the bundle's weights are rounded to fewer bits."""
    return bool(report.rounding or report.subject.get("options", {}).get("types") or scheme_of(report))


def missed_checks(report: "Report") -> int:
    """How many checks missed their limits."""
    return sum(not check.passed for check in report.checks)


def text_read(rounding: Mapping[str, Any]) -> tuple[str, bool]:
    """What was read to know what rounding cost, in words, and whether it was a text and not random tokens."""
    name = rounding.get("text", _RANDOM)
    count = f"{rounding['tokens']:,} " if "tokens" in rounding else ""
    return (f"{count}{_RANDOM}", False) if name == _RANDOM else (f"{count}tokens of {name}", True)
