"""Milliseconds a token and memory by the length of the text: our bounded cache beside transformers' growing
one.

    .venv/bin/python scripts/bench_context.py                 # 2k to 256k tokens, both models: half an hour
    .venv/bin/python scripts/bench_context.py --models Doge-20M --precisions int8 --contexts 2048 4096 16384

Each length is a process of its own, which reads that many random tokens and then decodes; ours take turns,
round by round, so that a change of the machine's speed meets all lengths: `relative` is the median, over all
rounds, of a length's time by the mean of all lengths' in that round. `resident` is the process's memory after
the last round, `peak` its largest: that of the prefill. transformers decodes on a cache of random numbers, a
length at a time (scripts/context/reference.py says why), where the memory suffices. Results: build/context/.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_peers import commit
from context.plot import draw
from doge_export.bench.machine import describe
from doge_export.bench.process import Worker
from peers.files import Files, prepare

ROOT = Path(__file__).resolve().parent.parent
_SETTLE = 0.1  # seconds in which the threads of the process before stop spinning
_CALLS = 2  # of 16 tokens, in one round


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def worker(module: str) -> Worker:
    return Worker(module, path=[str(ROOT), str(ROOT / "scripts"), *sys.path])


def ours(
    files: Files, precision: str, contexts: Sequence[int], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """One row a context."""
    running = []
    try:
        for _ in contexts:
            running.append(worker("context.ours"))
            running[-1].call("open", bundle=str(files.bundle(precision)), threads=threads)
        rows = []
        for context, process in zip(contexts, running, strict=True):
            say(f"{files.preset} {precision}: reading {context:,} tokens")
            read = process.call("read", context=context)
            rate = context / read["seconds"]
            rows.append({"context": context, "prefill_rate": rate, "prefill_peak": read["peak"]})
        times: list[list[float]] = [[] for _ in contexts]
        for number in range(rounds + 1):
            say(f"{files.preset} {precision}: decode, {f'round {number}' if number else 'warm-up'}")
            for row, process, row_times in zip(rows, running, times, strict=True):
                time.sleep(_SETTLE)
                figures = process.call("decode", calls=_CALLS)
                row |= {"resident": figures["resident"], "peak": figures["peak"]}
                if number:
                    row_times.append(statistics.mean(figures["ms"]))
        means = [statistics.mean(together) for together in zip(*times, strict=True)]
        return [
            {
                "model": files.preset,
                "name": precision,
                **row,
                "ms": statistics.median(row_times),
                "ms_best": min(row_times),
                "relative": statistics.median(one / mean for one, mean in zip(row_times, means, strict=True)),
            }
            for row, row_times in zip(rows, times, strict=True)
        ]
    finally:
        for process in running:
            process.close()


def reference(files: Files, contexts: Sequence[int], threads: int) -> list[dict[str, Any]]:
    """One row a context that fits into memory."""
    rows, config = [], files.config
    total = describe()["memory_bytes"] or 0
    for context in contexts:
        # The cache, a copy of a layer's while it grows, and a layer's keys and values for every head.
        layer = 2 * 4 * context * config.head_dim
        needed = layer * config.num_key_value_heads * (config.num_hidden_layers + 1)
        needed += layer * config.num_attention_heads
        if needed > 0.75 * total:
            say(f"{files.preset} transformers: {context:,} tokens would need {needed / 1e9:.0f} GB: left out")
            continue
        say(f"{files.preset} transformers: {context:,} tokens")
        with worker("context.reference") as process:
            process.call("open", checkpoint=str(files.checkpoint), threads=threads)
            process.call("read", context=context)
            process.call("decode", calls=1)
            figures = process.call("decode", calls=5)
        times = figures.pop("ms")
        named = {"model": files.preset, "name": "transformers eager", "context": context}
        rows.append({**named, **figures, "ms": statistics.median(times), "ms_best": min(times)})
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Two tables, a column a context."""
    contexts = sorted({row["context"] for row in report["results"]})
    by_series = {(row["model"], row["name"], row["context"]): row for row in report["results"]}
    series = list(dict.fromkeys(key[:2] for key in by_series))
    head = " | ".join(f"{context // 1024}k" for context in contexts)
    lines = []
    for title, key, scale, digits in (
        ("milliseconds a token, median", "ms", 1.0, 3),
        ("the same by the mean of all lengths of a round, median", "relative", 1.0, 3),
        ("resident memory, MiB", "resident", 2.0**-20, 0),
        ("peak memory of the prefill, MiB", "prefill_peak", 2.0**-20, 0),
        ("tokens/s of the prefill", "prefill_rate", 1.0, 0),
    ):
        lines += [f"**{title}**", "", f"| | {head} |", "|---|" + "---|" * len(contexts)]
        for model, name in series:
            values = [by_series.get((model, name, context), {}).get(key) for context in contexts]
            if any(values):
                cells = ["" if value is None else f"{value * scale:,.{digits}f}" for value in values]
                lines.append(f"| {model}, {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["Doge-20M", "Doge-60M"])
    parser.add_argument("--precisions", nargs="+", default=["int8", "fp32"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 4096, 16384, 65536, 262144])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--keep", action="store_true", help="use the bundles of the run before")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "context")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "pictures" / "context.svg")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads, *arguments.contexts) < 1:
        parser.error("rounds, threads and contexts are 1 or more")
    report: dict[str, Any] = {
        "command": shlex.join(["scripts/bench_context.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": describe(),
        "run": {"threads": arguments.threads, "rounds": arguments.rounds},
        "results": [],
    }
    contexts = sorted(arguments.contexts)
    for model in arguments.models:
        files = prepare(model, arguments.build / "models", arguments.precisions, arguments.keep, say)
        for precision in arguments.precisions:
            report["results"] += ours(files, precision, contexts, arguments.rounds, arguments.threads)
        if not arguments.no_reference:
            report["results"] += reference(files, contexts, arguments.threads)
        (arguments.build / "context.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = markdown(report)
    (arguments.build / "context.md").write_text(text, encoding="utf-8")
    print(text)
    draw(report, arguments.plot)


if __name__ == "__main__":
    main()
