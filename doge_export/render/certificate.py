"""A validation as one HTML page that needs nothing else: verdict, every check as a bar against its limit."""

__all__ = ["certificate", "certificate_dict", "certificate_faults"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from doge_export.errors import DogeExportError
from doge_export.json_file import member, read_json
from doge_export.render.lines import report_lines
from doge_export.render.parity_charts import drift_svg, margins_svg

if TYPE_CHECKING:
    from doge_export.bundle import Bundle
    from doge_export.decision import Decision
    from doge_export.validate import Check, Report

_WRITE_ONE = "Write one with doge-export validate BUNDLE --reference MODEL --json FILE."
_DECADES = 8  # a bar is empty where a value is so many powers of ten below its limit

_PAGE = """<!doctype html> <html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title> <style> body
{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } .verdict { padding: .6rem 1rem;
border-radius: .4rem; color: #fff; background: {{ "#1a7f4b" if passed else "#b3261e" }} } table {
border-collapse: collapse; width: 100% } td, th { padding: .2rem .5rem; text-align: left; vertical-align: top
} tr { border-bottom: 1px solid #e4e4e4 } .number { text-align: right; font-variant-numeric: tabular-nums }
.bar { width: 12rem } .track { background: #ececec; height: .7rem; border-radius: .35rem; overflow: hidden }
.fill { height: 100% } .hash { font: 12px monospace; word-break: break-all } .missed { color: #b3261e;
font-weight: 600 } </style></head><body> <h1>{{ title }}</h1> <p class="verdict">{{ verdict }}</p> <ul>{% for
line in notes %}<li>{{ line }}</li>{% endfor %}</ul> <h2>Checks</h2> <p>A full bar is at the limit; each
eighth less is a power of ten.</p> {% for picture in pictures %}
<p>{{ picture | safe }}</p>{% endfor %} <table><tr><th>check</th><th class="number">value</th><th
class="number">limit</th><th>of the limit</th></tr> {% for check in checks %}<tr><td>{{ check.name }}</td> <td
class="number{{ "" if check.passed else " missed" }}">{{ check.value }}</td><td class="number">{{ check.limit
}}</td> <td class="bar"><div class="track"><div class="fill" style="width: {{ check.width }}%; background: {{
"#1a7f4b" if check.passed else "#b3261e" }}"></div></div></td></tr> {% endfor %}</table> {% for name, rows in
tables %}<h2>{{ name }}</h2> <table>{% for key, value in rows %}<tr><td>{{ key }}</td><td{% if name == "Files"
%} class="hash"{% endif %}>{{ value }} </td></tr>{% endfor %}</table>{% endfor %} </body></html>
"""


def certificate(report: "Report", bundle: "Bundle", machine: dict[str, Any]) -> str:
    """The page. It holds the hashes of the bundle's files, so that it can be held to another copy of it."""
    manifest = bundle.manifest
    *notes, verdict = report_lines(report)
    failed = {check.name for check in report.checks if not check.passed}
    notes = [line for line in notes if not any(line.startswith(name) for name in failed)]
    tables = [
        ("Subject", [("reference", report.subject.get("reference")), ("seed", report.subject.get("seed"))]),
        ("Generation", _generation(manifest.generation)),
        ("Options", sorted((key, _text(value)) for key, value in manifest.options.items())),
        ("Versions", [("doge-export", manifest.doge_export), *sorted(manifest.versions.items())]),
        ("Machine", [(key, _text(value)) for key, value in machine.items()]),
        ("Files", [(name, f"sha256 {entry.sha256}") for name, entry in sorted(bundle.files.items())]),
    ]
    tables = [(name, rows) for name, rows in tables if rows]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        title=f"Parity of {bundle.path.name} with {report.subject.get('reference')}",
        passed=report.passed,
        verdict=verdict,
        notes=notes,
        checks=[_row(check) for check in report.checks],
        tables=tables,
        pictures=_pictures(report),
    )


def certificate_dict(report: "Report", bundle: "Bundle", machine: dict[str, Any]) -> dict[str, Any]:
    """The same for machines: the report, and what it is of. `certificate_faults` reads it."""
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
        found = read_json(path, unique=True, remedy=_WRITE_ONE)
        files, passed = member(found, "files", dict), member(found, "passed", bool)
        checks = member(found, "checks", list)
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
        faults.append(f"{path} says that the bundle missed: {found.get('cause') or 'see its checks'}")
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


def _pictures(report: "Report") -> list[str]:
    pictures = [drift_svg(report.drift)] if report.drift.get("parts") else []
    return [*pictures, margins_svg(report.margins)] if report.margins else pictures


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
