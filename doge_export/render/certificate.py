"""A validation as one HTML page that needs nothing else: what was compared, what it says, every check."""

__all__ = ["certificate", "certificate_dict", "certificate_faults"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import member, read_json
from doge_export.render import claims
from doge_export.render.canvas import DARK, LIGHT
from doge_export.render.lines import note_lines, verdict_line
from doge_export.render.page import PAGE
from doge_export.render.parity_charts import drift_svg, margins_svg

if TYPE_CHECKING:
    from doge_export.core.bundle import Bundle
    from doge_export.core.generations.decision import Decision
    from doge_export.validate import Check, Report

_WRITE_ONE = "Write one with doge-export validate BUNDLE --reference MODEL --json FILE."
_DECADES = 8  # a bar is empty where a value is so many powers of ten below its limit


def certificate(report: "Report", bundle: "Bundle", machine: dict[str, Any]) -> str:
    """The certificate as an HTML page. It holds the hashes of the bundle's files, so that it can be held to
    another copy of it."""
    manifest = bundle.manifest
    tables = [
        ("Subject", [("reference", report.subject.get("reference")), ("seed", report.subject.get("seed"))]),
        ("Generation", _generation(manifest.generation)),
        ("Options", sorted((key, _text(value)) for key, value in manifest.options.raw.items())),
        ("Versions", [("doge-export", manifest.doge_export), *sorted(manifest.versions.items())]),
        ("Machine", [(key, _text(value)) for key, value in machine.items()]),
        ("Files", [(name, f"sha256 {entry.sha256}") for name, entry in sorted(bundle.files.items())]),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(
        title=f"Parity of {bundle.path.name} with {report.subject.get('reference')}",
        light=_colours(LIGHT),
        dark=_colours(DARK),
        passed=report.passed,
        headline=claims.headline(report),
        aside=claims.beside_the_verdict(report),
        compared=list(claims.comparison(report, bundle.path.name)),
        schedules=_schedules(report),
        omitted=report.omitted,
        exactness=claims.exactness(report),
        sections=[each for each in (claims.rounding(report), claims.kernels(report)) if each is not None],
        pictures=_pictures(report),
        verdict=verdict_line(report),
        notes=list(note_lines(report)),
        checks=[_row(check) for check in report.checks],
        tables=[(name, rows) for name, rows in tables if rows],
    )


def certificate_dict(report: "Report", bundle: "Bundle", machine: dict[str, Any]) -> dict[str, Any]:
    """The certificate as a dict for JSON: the report, and what it is of. `certificate_faults` reads it."""
    manifest = bundle.manifest
    return {
        **report.to_dict(),
        "files": {name: entry.sha256 for name, entry in sorted(bundle.files.items())},
        "versions": {"doge-export": manifest.doge_export, **manifest.versions},
        "machine": machine,
        "generation": None if manifest.generation is None else manifest.generation.to_dict(),
    }


def certificate_faults(path: Path, bundle: "Bundle") -> list[str]:
    """Why the JSON certificate at `path` does not vouch for `bundle`, as sentences; none where it does.

    Raises:
        DogeExportError: there is no such file, or it is no certificate.
    """
    try:
        document = read_json(path, unique=True, remedy=_WRITE_ONE)
        files, passed = member(document, "files", dict), member(document, "passed", bool)
        checks = member(document, "checks", list)
        missed = [member(check, "name", str) for check in checks if not member(check, "passed", bool)]
    except FileNotFoundError:
        raise DogeExportError(f"{path} cannot be read: there is no such file.", _WRITE_ONE) from None
    except (ValueError, KeyError):
        raise DogeExportError(f"{path} is no certificate.", _WRITE_ONE) from None
    if not files or not checks:
        what = "checks" if files else "files"
        raise DogeExportError(f"{path} is no certificate: it is of no {what}.", _WRITE_ONE)
    faults = []
    here = {name: entry.sha256 for name, entry in bundle.files.items()}
    others = sorted(name for name in {*files, *here} if files.get(name) != here.get(name))
    if others:
        faults.append(f"{path} is of another bundle: other bytes in {', '.join(others)}")
    if passed and missed:
        faults.append(f"{path} says that the bundle passed, and that it missed: {', '.join(missed)}")
    if not passed:
        faults.append(f"{path} says that the bundle missed: {document.get('cause') or 'see its checks'}")
    return faults


def _generation(decision: "Decision | None") -> list[tuple[str, str]]:
    """Which generation the model is of, and what decided it."""
    if decision is None:
        return []
    bits = sorted(decision.bits_per_byte.items(), key=lambda item: item[1])
    return [
        ("generation", decision.generation),
        ("decided by", decision.decided_by),
        ("evidence", "; ".join(decision.evidence)),
        *((f"bits per byte as {name}", f"{value:.2f}") for name, value in bits),
    ]


def _schedules(report: "Report") -> list[str]:
    """Their names, each once, however many backends ran it: a backend's name stands behind the schedule's."""
    names = list(dict.fromkeys(str(each["name"]) for each in report.schedules))
    return [name for name in names if not any(name.startswith(f"{other}, ") for other in names)]


def _pictures(report: "Report") -> list[tuple[str, str]]:
    """Pictures of the comparison, and what there is to see in them."""
    found = []
    if report.drift.get("parts"):
        caption = "Each dot is one part of the model, in the order of computation. Differences grow slowly."
        found.append((drift_svg(report.drift), f"{caption} A jump shows where a fault begins."))
    if report.margins:
        caption = (
            "A head keeps the keys with the largest weights, a router the best experts. Where the last one "
        )
        caption += "kept and the first one dropped are nearly equal, rounding may decide between them."
        found.append((margins_svg(report.margins), caption))
    return found


def _colours(colours: dict[str, str]) -> str:
    return "; ".join(f"--{name}: {colour}" for name, colour in colours.items())


def _row(check: "Check") -> dict[str, Any]:
    sign = "≥" if check.at_least else "≤"
    return {
        "name": check.name,
        "value": f"{check.value:.3g}",
        "limit": f"{sign} {check.limit:g}",
        "passed": check.passed,
        "width": round(100 * _share(check), 1),
    }


def _share(check: "Check") -> float:
    """How full the bar is, 0 to 1; of a share that must be reached, what is missing counts."""
    value, limit = check.value, check.limit
    if check.at_least:
        value, limit = 1 - value, 1 - limit
        if limit <= 0:
            return 0.0 if value <= 0 else 1.0
    if math.isnan(value) or value >= limit:
        return 1.0
    if value <= 0:
        return 0.0
    return max(0.0, 1 + math.log10(value / limit) / _DECADES)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
