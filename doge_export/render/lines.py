"""Reports as lines."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from doge_export.render.facts import dtype_of, is_rounded, missed_checks, scheme_of, text_read

if TYPE_CHECKING:
    from doge_export.validate import Report

__all__ = ["bench_lines", "note_lines", "report_lines", "verdict_line"]

_KERNELS = "native kernels"  # as a check has them
_FAR = 10.0  # times what the graph in plain onnxruntime is off by


def report_lines(report: "Report", every: bool = False) -> Iterator[str]:
    """A validation as lines: the failed checks, or `every` one, what there is to know, and the verdict."""
    yield from _check_lines(report, every)
    yield from note_lines(report)
    yield verdict_line(report)


def note_lines(report: "Report") -> Iterator[str]:
    """Yield what there is to know beside the checks."""
    yield from _rounding_lines(report)
    yield from _window_lines(report)
    if heads := report.fully_masked_heads:
        yield (
            f"masked: {len(heads)} heads mask every key and average over all keys of a call, "
            f"later ones and padding included, as in the original: {'; '.join(heads)}"
        )
    yield from _kernel_lines(report)
    if report.limits_from:
        yield f"limits: {report.limits_from}"
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


def verdict_line(report: "Report") -> str:
    """The verdict: what the checks add up to. Of rounded weights that is one claim, and what rounding cost is
    another."""
    dtype = dtype_of(report)
    verdict = "exact" if dtype == "float32" else f"within the limits of {dtype}"
    figures = f"max abs diff {report.max_abs_diff:.1e}, KL {report.kl_divergence:.1e}"
    if is_rounded(report):
        verdict += " for the rounded weights it holds"
        cost = _cost(report.rounding) if report.rounding else "is not measured here"
        figures += f"; what rounding cost: {cost}"
    else:
        figures += f", top-1 agreement {report.top1_agreement:.2%}"
    verdict = verdict if report.passed else f"{missed_checks(report)} MISSED"
    return f"parity: {len(report.checks)} checks, {verdict}; {figures}"


def _rounding_lines(report: "Report") -> Iterator[str]:
    """Yield what rounding cost, and what was read to know it."""
    if not report.rounding:
        return
    read, is_text = text_read(report.rounding)
    more = "" if is_text else "; validate reads a text, where there is a tokenizer"
    scheme = scheme_of(report) or "a mixture of types"
    yield (
        f"rounding to {scheme} cost: {_cost(report.rounding)}, against the weights as they were, on {read} "
        f"({report.rounding['schedule']}; no limit{more})"
    )


def _cost(rounding: Mapping[str, Any]) -> str:
    kl_error, top1_error = rounding.get("kl_divergence_stderr"), rounding.get("top1_agreement_stderr")
    kl = "" if kl_error is None else f" \u00b1 {kl_error:.0e}"
    top1 = "" if top1_error is None else f" \u00b1 {top1_error:.2%}"
    return f"KL {rounding['kl_divergence']:.1e}{kl}, top-1 agreement {rounding['top1_agreement']:.2%}{top1}"


def _kernel_lines(report: "Report") -> Iterator[str]:
    """Yield the worst of the native kernels, and why a single logit may be far off where it has no limit."""
    if not report.kernels:
        return
    against = ", against the same rounded weights" if is_rounded(report) else ""
    line = (
        f"native kernels: KL {report.kernels['kl_divergence']:.1e}, top-1 agreement "
        f"{report.kernels['top1_agreement']:.2%}{against}; max abs diff {report.kernels['max_abs_diff']:.1e}"
    )
    limited = any(check.metric == "max_abs_diff" and check.backend == _KERNELS for check in report.checks)
    if not limited and report.kernels["max_abs_diff"] > _FAR * report.max_abs_diff:
        line += ", without a limit: where two keys nearly tie the other is chosen, and one token is off"
    yield line


def _check_lines(report: "Report", every: bool) -> Iterator[str]:
    width = max((len(check.name) for check in report.checks), default=0)
    for check in report.checks:
        if every or not check.passed:
            sign = ">=" if check.at_least else "<="
            verdict = "ok" if check.passed else "MISSED"
            yield f"{check.name.ljust(width)}  {check.value:9.3g} {sign} {check.limit:g}  {verdict}"


def _window_lines(report: "Report") -> Iterator[str]:
    """How the choices of keys and experts fell."""
    if report.boundary_rows:
        yield (
            f"window: {report.boundary_rows} rows had more keys than fit, {report.tie_rows} of them tied at "
            "the boundary (the lower position stays); the nearest of the others were "
            f"{report.nearest_margin:.1e} apart"
        )
    if report.changed_rows:
        rounding = {"float32": "1e-7", "float16": "1e-3"}.get(dtype_of(report), "1e-2")
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


def bench_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What `bench` measured: one line for the run, one a side, and one for their ratio."""
    options = report["options"]
    what = [str(options[key]) for key in ("precision", "dtype") if options.get(key) not in (None, "none")]
    yield (
        f"{report['bundle']} ({', '.join(what)}): {report['prompt_tokens']} tokens of prompt, "
        f"{report['new_tokens']} new, {f'{rows} rows, ' if (rows := report['rows']) > 1 else ''}"
        f"{report['threads']} threads; tokens/s, best of "
        f"{len(report['rounds'])} rounds (median)"
    )
    sampled = report.get("sampled")
    sides = {"doge-export": report, **({"sampled": sampled} if sampled else {}), **report["against"]}
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
    if sampled:
        how = ", ".join(f"{name} {value}" for name, value in sampled["options"].items() if name != "seed")
        yield f"{sampled['ratio']:.2f} of the greedy rate when sampled with {how} (medians)"
    for name, figures in report["against"].items():
        yield (
            f"{figures['ratio']:.2f} times {name} in decode, {figures['prefill_ratio']:.2f} times in "
            f"prefill; {figures['equal_tokens']:.0%} of the tokens are the same up to the first that differs"
        )
