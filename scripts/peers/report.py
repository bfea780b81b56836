"""The results as markdown: rates and ratios by peer and model, then ours against what it is judged by."""

__all__ = ["BASE", "markdown", "peers", "rate"]

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BASE = "transformers eager"
Results = Sequence[Mapping[str, Any]]


def rate(results: Results, threads: int, model: str, peer: str, part: str) -> float | None:
    """Tokens per second of the best round; None where it was not measured or failed."""
    for result in results:
        key = (result["threads"], result["model"], result["peer"])
        if key == (threads, model, peer) and part in result.get("best", {}):
            return float(result["best"][part])
    return None


def peers(results: Results) -> list[str]:
    """The names of all peers, in the order they were measured."""
    return list(dict.fromkeys(result["peer"] for result in results))


def markdown(report: Mapping[str, Any]) -> str:
    """All tables of a report."""
    results, run = report["results"], report["run"]
    titles = {
        "decode": f"decode, {run['prompt_tokens']} tokens of prompt and {run['new_tokens']} new ones",
        "prefill": f"prefill of {run['prefill_tokens']} tokens, logits of the last one",
    }
    lines = [f"{report['machine']['cpu']}, {report['machine']['cpus']} processors; batch 1, tokens/s of the "
             f"best of {run['rounds']} interleaved rounds (times transformers eager)", ""]  # fmt: skip
    for threads in run["threads"]:
        for part, title in titles.items():
            lines += [
                f"**{title}, {threads} threads**",
                "",
                *_rates(results, run["models"], threads, part),
                "",
            ]
        lines += [f"**ours, {threads} threads**", "", *_ours(results, run["models"], threads), ""]
    failed = list(_failures(results))
    if failed:
        lines += ["**not measured**", "", *failed, ""]
    return "\n".join(lines)


def _rates(results: Results, models: Sequence[str], threads: int, part: str) -> Iterator[str]:
    yield f"| | {' | '.join(models)} |"
    yield "|---" * (len(models) + 1) + "|"
    for peer in peers(results):
        cells = [_cell(results, threads, model, peer, part) for model in models]
        if any(cells):
            yield f"| {peer} | {' | '.join(cells)} |"


def _cell(results: Results, threads: int, model: str, peer: str, part: str) -> str:
    value = rate(results, threads, model, peer, part)
    if value is None:
        return ""
    base = rate(results, threads, model, BASE, part)
    ratio = "" if not base else f" ({value / base:.1f})" if value / base >= 10 else f" ({value / base:.2f})"
    return f"{value:,.0f}{ratio}"


def _ours(results: Results, models: Sequence[str], threads: int) -> Iterator[str]:
    """Ours over each of what it is judged by: the reference, the fastest llama.cpp, the roofline."""
    heads = ("decode: eager", "llama.cpp", "contrib", "of roofline", "prefill: eager", "sdpa", "llama.cpp")
    yield f"| model | precision | {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model in models:
        for precision in ("fp32", "int8", "int4", "int8-head4"):
            name = f"doge-export {precision}"
            if all(rate(results, threads, model, name, part) is None for part in ("decode", "prefill")):
                continue
            same = {result["peer"] for result in results if result.get("same_bits") == precision}
            rivals = {
                family: sorted(peer for peer in same if peer.startswith(family))
                for family in ("llama.cpp", "onnxruntime contrib")
            }
            judged = (
                ("decode", [BASE]),
                ("decode", rivals["llama.cpp"]),
                ("decode", rivals["onnxruntime contrib"]),
                ("decode", [f"roofline {precision}"]),
                ("prefill", [BASE]),
                ("prefill", ["transformers sdpa"]),
                ("prefill", rivals["llama.cpp"]),
            )
            cells = [_over(results, threads, model, name, names, part) for part, names in judged]
            yield f"| {model} | {precision} | {' | '.join(cells)} |"


def _over(results: Results, threads: int, model: str, name: str, rivals: Sequence[str], part: str) -> str:
    ours = rate(results, threads, model, name, part)
    rates = [value for rival in rivals if (value := rate(results, threads, model, rival, part))]
    return f"{ours / max(rates):.2f}" if ours and rates else ""


def _failures(results: Results) -> Iterator[str]:
    for result in results:
        if "failed" in result:
            where = f"{result['model']}, {result['threads']} threads"
            yield f"* {result['peer']} ({where}): {result['failed']}"
