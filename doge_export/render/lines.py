"""Reports as lines."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doge_export.validate import Report

__all__ = ["bench_lines", "report_lines"]


def report_lines(report: "Report", every: bool = False) -> Iterator[str]:
    """A validation as lines: the failed checks, or `every` one, then what they add up to."""
    width = max((len(check.name) for check in report.checks), default=0)
    for check in report.checks:
        if every or not check.passed:
            sign = ">=" if check.at_least else "<="
            verdict = "ok" if check.passed else "MISSED"
            yield f"{check.name.ljust(width)}  {check.value:9.3g} {sign} {check.limit:g}  {verdict}"
    if report.boundary_rows:
        yield (
            f"window: {report.boundary_rows} rows had more keys than fit, {report.tie_rows} of them tied at "
            "the boundary (the lower position stays); the nearest of the others were "
            f"{report.nearest_margin:.1e} apart"
        )
    options = report.subject.get("options", {})
    dtype = options.get("dtype", "float32")
    if report.changed_rows:
        rounding = {"float32": "1e-7", "float16": "1e-3"}.get(dtype, "1e-2")
        yield (
            f"window: {report.changed_rows} rows chose other keys or experts than the reference; keys that "
            f"changed places were at most {report.widest_change:.1e} apart ({rounding} is about one rounding)"
        )
    for what, settled in (
        ("window: in {} rows rounding decides between keys of other values", report.settled_rows),
        ("experts: for {} tokens of a layer rounding decides between experts", report.settled_experts),
    ):
        if settled:
            yield (
                f"{what.format(settled)}, at most {report.widest_settled:.1e} apart; there the reference was "
                "given the choice made here"
            )
    if report.blind_heads:
        yield (
            f"masked: {len(report.blind_heads)} heads mask every key and average over all keys of a call, "
            f"later ones and padding included, as in the original: {'; '.join(report.blind_heads)}"
        )
    if report.kernels:
        yield (
            f"native kernels: max abs diff {report.kernels['max_abs_diff']:.1e}, KL "
            f"{report.kernels['kl_divergence']:.1e}, top-1 agreement {report.kernels['top1_agreement']:.2%}"
        )
    if report.rounding:
        yield (
            f"rounding to {options.get('precision')}: KL {report.rounding['kl_divergence']:.1e} and top-1 "
            f"agreement {report.rounding['top1_agreement']:.2%} with the weights as they were "
            f"({report.rounding['schedule']}; no limit)"
        )
    for entry in report.reference:
        against = "" if entry["limit"] is None else f" (limit {entry['limit']:g})"
        note = f"; {entry['note']}" if entry["note"] else ""
        yield f"the reference itself, {entry['name']}: {entry['max_abs_diff']:.1e}{against}{note}"
    if report.greedy:
        yield f"greedy: {report.greedy['agreed']} of {report.greedy['new_tokens']} tokens agree"
    if "skipped" in report.tokenizer:
        yield f"left out: the tokenizers; {report.tokenizer['skipped']}"
    if report.cause:
        yield f"cause: {report.cause}"
    for sentence in report.omitted:
        yield f"left out: {sentence}"
    failed = sum(not check.passed for check in report.checks)
    passed = "exact" if dtype == "float32" else f"within the limits of {dtype}"
    if report.rounding:
        passed += " for its rounded weights"
    verdict = passed if report.passed else f"{failed} MISSED"
    yield (
        f"parity: {len(report.checks)} checks, {verdict}; max abs diff {report.max_abs_diff:.1e}, "
        f"KL {report.kl_divergence:.1e}, top-1 agreement {report.top1_agreement:.2%}"
    )


def bench_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What `bench` measured: one line for the run, one a side, and one for their ratio."""
    options = report["options"]
    what = [str(options[key]) for key in ("precision", "dtype") if options.get(key) not in (None, "none")]
    yield (
        f"{report['bundle']} ({', '.join(what)}): {report['prompt_tokens']} tokens of prompt, "
        f"{report['new_tokens']} new, {report['threads']} threads; tokens/s, best of "
        f"{len(report['rounds'])} rounds (median)"
    )
    sides = {"doge-export": report, **report["against"]}
    width = max(map(len, sides))
    for name, figures in sides.items():
        rates = [
            f"{part} {figures[key]:.1f} ({figures['median'][key]:.1f})"
            for part in ("decode", "prefill")
            for key in (f"{part}_tokens_per_second",)
        ]
        yield (
            f"{name.ljust(width)}  {', '.join(rates)}, peak memory "
            f"{figures['peak_memory_bytes'] / 1e6:.0f} MB, loaded in {figures['load_seconds']:.2f} s"
        )
    for name, figures in report["against"].items():
        yield (
            f"{figures['ratio']:.2f} times {name} in decode, {figures['prefill_ratio']:.2f} times in "
            f"prefill; {figures['equal_tokens']:.0%} of the tokens are the same up to the first that differs"
        )
