"""The page: self-contained, true to the report, and safe with any name."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from doge_export.bundle import Bundle
from doge_export.cli.app import run
from doge_export.render import certificate
from doge_export.validate import Check, Report

Export = Callable[..., tuple[Path, Bundle]]


class _Page(HTMLParser):
    """Tags that stay open, addresses that are asked for, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def widths(page: str) -> list[float]:
    return [float(width) for width in re.findall(r"width: ([\d.]+)%; background", page)]


def test_it_shows_what_the_report_says(exported: Export) -> None:
    checks = [
        Check("prefill 1: logits", 1e-6, 1e-4),
        Check("prefill 2: logits", 1e-4, 1e-4),
        Check("prefill 3: logits", 3e-4, 1e-4),
        Check("sets", 1.0, 1.0, at_least=True),
        Check("agreement", 0.99, 0.9, at_least=True),
        Check("nothing", float("nan"), 1e-4),
        Check("exact", 0.0, 1e-4),
    ]
    report = Report(checks=checks, subject={"reference": "<b>doge</b>", "seed": 3})
    _, bundle = exported()
    page = certificate(report, bundle, {"cpu": "a processor", "cpu_features": ["avx2", "fma"]})
    parsed = _Page(page)
    assert parsed.open == [] and parsed.addresses == [], "nothing is fetched"
    text = " ".join(parsed.words)
    assert "<b>doge</b>" in text and "<b>" not in page, "a name is no markup"
    assert "2 MISSED" in text and page.count("missed") == 3  # a rule, and two cells
    assert widths(page) == [75.0, 100.0, 100.0, 0.0, 87.5, 100.0, 0.0]
    for entry in bundle.manifest.files.values():
        assert entry.sha256 in text
    assert "avx2, fma" in text
    passed = certificate(replace(report, checks=checks[:2]), bundle, {})
    assert "#1a7f4b" in passed and "MISSED" not in passed


def test_the_command_writes_it(exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = exported()
    page = tmp_path / "page.html"
    assert run(["validate", str(bundle.path), "--reference", str(checkpoint), "--html", str(page)]) == 0
    shown = capsys.readouterr().out.splitlines()
    text = " ".join(_Page(page.read_text(encoding="utf-8")).words)
    assert shown[-1] in text, "the verdict"
    assert len(widths(page.read_text())) == len([line for line in shown if line.endswith("  ok")])
    missing = str(tmp_path / "nowhere" / "page.html")
    assert run(["validate", str(bundle.path), "--reference", str(checkpoint), "--html", missing]) == 2
    assert "cannot be written" in capsys.readouterr().err
