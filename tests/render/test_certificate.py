"""The page: self-contained, true to the report, and safe with any name."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import Bundle
from doge_export.render import certificate
from doge_export.render.canvas import DARK, LIGHT
from doge_export.render.lines import note_lines, verdict_line
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
    return [float(width) for width in re.findall(r'style="width: ([\d.]+)%"', page)]


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
    assert "2 MISSED" in text and page.count('class="number missed"') == 2
    assert widths(page) == [75.0, 100.0, 100.0, 0.0, 87.5, 100.0, 0.0]
    for entry in bundle.manifest.files.values():
        assert entry.sha256 in text
    assert "avx2, fma" in text
    passed = certificate(replace(report, checks=checks[:2]), bundle, {})
    assert 'class="verdict good"' in passed and 'class="verdict bad"' in page and "MISSED" not in passed
    assert "Passed: exact. 2 of 2 checks" in passed and "Not passed: 2 of 7 checks" not in passed


CHECKS = [Check("prefill 1: logits", 1e-6, 1e-4)]
ROUNDED: dict[str, Any] = {"reference": "doge", "seed": 0, "options": {"precision": "int8"}}
COST: dict[str, Any] = {"schedule": "prefill 127", "kl_divergence": 6.5e-4, "top1_agreement": 0.9911}


def words(page: str) -> str:
    return " ".join(" ".join(_Page(page).words).split())


def test_what_rounding_cost_is_a_claim_of_its_own(exported: Export) -> None:
    """Under its own question, after what it means; the verdict is of the other."""
    _, bundle = exported()
    report = Report(checks=CHECKS, subject=ROUNDED, rounding=COST)
    text = words(certificate(report, bundle, {}))
    first, second = "Does the file compute what its weights say?", "What did rounding the weights cost?"
    verdict, own, cost = text.partition(first)[0], text.partition(first)[2], text.partition(second)[2]
    assert "exact for the weights it holds" in verdict and "is another question, answered below." in verdict
    assert "99.11%" not in verdict and "99.11%" not in own.partition(second)[0]
    assert cost.index("It has no limit") < cost.index("99.11%") and "rounded to int8" in cost
    told = COST | {"text": "heldout.txt", "tokens": 8192, "top1_agreement_stderr": 0.0009}
    text = words(certificate(replace(report, rounding=told), bundle, {}))
    assert "8,192 tokens of heldout.txt" in text and "99.11% ± 0.09%" in text
    text = words(certificate(replace(report, rounding={}), bundle, {}))
    assert "What rounding the weights cost was not measured here." in text and second not in text
    plain = words(certificate(replace(report, rounding={}, subject={"reference": "doge"}), bundle, {}))
    assert "rounding the weights" not in plain and "Passed: exact. 1 of 1 checks" in plain


def test_words_come_before_figures(exported: Export) -> None:
    _, bundle = exported()
    kernels = {"max_abs_diff": 0.12, "kl_divergence": 1e-4, "top1_agreement": 0.995}
    page = certificate(Report(checks=CHECKS, subject=ROUNDED, rounding=COST, kernels=kernels), bundle, {})
    sections = page.split("<h2>")[1:]
    assert [each.partition("</h2>")[0] for each in sections][:5] == [
        "What was compared",
        "Does the file compute what its weights say?",
        "What did rounding the weights cost?",
        "And on the native kernels?",
        "Everything the command says",
    ]
    assert "<strong>" not in sections[0] and not re.search(r"\d%|e-\d", sections[0])
    for each in sections[1:4]:
        assert each.index("<p>") < each.index("<strong>"), "words first"


def test_it_follows_the_scheme_prints_and_fits_a_phone(exported: Export) -> None:
    _, bundle = exported()
    margins = {"bins": ["tied", "more"], "keys": [1, 2], "experts": [0, 0]}
    drift = {"schedule": "prefill 36", "limit": 1e-4, "parts": {"0.attention": 1e-6, "logits": 1e-6}}
    page = certificate(Report(checks=CHECKS, subject=ROUNDED, drift=drift, margins=margins), bundle, {})
    for need in ("prefers-color-scheme: dark", "@media print", "@media (max-width", 'name="viewport"'):
        assert need in page
    for name in ("ground", "ink"):
        assert f"--{name}: {LIGHT[name]}" in page and f"--{name}: {DARK[name]}" in page
    used, known = set(re.findall(r"var\(--(\w+)\)", page)), set(re.findall(r"--(\w+): #", page))
    assert used <= known
    pictures = page.count("<svg ")
    assert pictures == 2 and page.count("<figcaption>") == 2 and page.count('role="img"') == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


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


def test_two_claims_of_a_quantized_bundle_are_told_apart() -> None:
    """Parity with the same rounded weights is not what the rounding cost, wherever it is said."""
    checks = [Check("prefill 1: logits", 1e-6, 1e-3)]
    subject = {"reference": "doge", "seed": 3, "options": {"dtype": "float32", "precision": "int8"}}
    cost = {"kl_divergence": 7e-4, "kl_divergence_stderr": 8e-5, "top1_agreement": 0.9911}
    cost |= {"top1_agreement_stderr": 0.0009, "tokens": 4096, "text": "a text", "schedule": "8 times"}
    kernels = {"max_abs_diff": 0.12, "kl_divergence": 1e-7, "top1_agreement": 1.0}
    report = Report(checks, max_abs_diff=1.7e-5, kernels=kernels, rounding=cost, subject=subject)
    verdict, lines = verdict_line(report), list(note_lines(report))
    assert "exact for the rounded weights it holds; max abs diff 1.7e-05" in verdict
    assert "what rounding cost: KL 7.0e-04 \u00b1 8e-05, top-1 agreement 99.11% \u00b1 0.09%" in verdict
    assert "100.00%" not in verdict and "4,096 tokens of a text" in lines[0]
    (native,) = (line for line in lines if line.startswith("native"))
    assert "against the same rounded weights" in native and "where two keys nearly tie" in native
    full = replace(report, rounding={}, subject={**subject, "options": {"precision": "fp32"}})
    assert verdict_line(full).endswith("exact; max abs diff 1.7e-05, KL 0.0e+00, top-1 agreement 100.00%")
    engine = replace(report, rounding={})
    assert "100.00%" not in verdict_line(engine) and "is not measured here" in verdict_line(engine)
