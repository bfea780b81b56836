"""The worker's end of a measurement: requests on stdin and answers on stdout, one JSON object a line.

Only the standard library and `doge_export.core.errors`, so that any interpreter can serve.
"""

__all__ = ["peak_memory", "serve", "timed"]

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer `{"call": name, ...arguments}` with `{"result": ...}` or `{"error": ...}` until stdin ends."""
    # Libraries print where they like; what they print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"result": handlers[request.pop("call")](**request)}
        except DogeExportError as error:
            answer = {"error": error.message, "remedy": error.remedy}
        except Exception as error:  # the host says it, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}", "bug": True}
        print(json.dumps(answer), file=answers, flush=True)


def timed(prompt: Sequence[int], tokens: Iterable[int]) -> dict[str, Any]:
    """Take all `tokens`: the seconds up to the first are prefill's, the others are decode's."""
    generated: list[int] = []
    first = started = time.perf_counter()
    for token in tokens:
        if not generated:
            first = time.perf_counter()
        generated.append(token)
    return {
        "prefill_tokens": len(prompt),
        "prefill_seconds": first - started,
        "decode_tokens": len(generated) - 1,
        "decode_seconds": time.perf_counter() - first,
        "tokens": generated,
    }


def peak_memory() -> int:
    """The largest resident set of this process in bytes, memory-mapped weights included.

    Linux counts into a process's ru_maxrss what its parent had in memory when it was started, so that the
    kernel's own high-water mark is asked first.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        match = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
