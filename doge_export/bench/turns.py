"""Tokens a second of several bundles, each measured in turn, in a process of its own."""

__all__ = ["turn"]

import statistics
from pathlib import Path

from doge_export.bench.process import Worker

_OURS = "doge_export.bench.worker"
_WARM = 8  # tokens that are not counted
_MIN_SECONDS = 0.5  # seconds of decoding


def turn(bundle: Path, prompt: list[int], new_tokens: int, threads: int) -> float:
    """Tokens per second of greedy decoding, batch 1, by a new process that ends with it: so many bundles take
    turns without being in memory together. What is done in no time is done again, for at least half a second:
    the median.

    Raises:
        DogeExportError: the bundle does not run here.
    """
    speeds, spent = list[float](), 0.0
    with Worker(_OURS) as worker:
        worker.call("open", bundle=str(bundle), threads=threads)
        worker.call("round", prompt=prompt, new_tokens=_WARM)
        while spent < _MIN_SECONDS:
            run = worker.call("round", prompt=prompt, new_tokens=new_tokens)
            speeds.append(run["decode_tokens"] / run["decode_seconds"])
            spent += run["decode_seconds"]
    return statistics.median(speeds)
