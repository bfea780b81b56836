"""A trial of rules in a process of its own: over a few schemas llguidance computes without end (many patterns
that all have to hold), and it cannot be stopped."""

__all__ = ["check_trial"]

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from doge_export.core.errors import DogeExportError

_SECONDS = 3  # of a processor; a schema takes some milliseconds, and the process itself a tenth
_BYTES = 2 << 30  # of addresses
_AT_ONCE = threading.BoundedSemaphore(2)  # trials: many clients must not take all processors
_TRIAL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
import llguidance
grammar, limits = json.load(sys.stdin)
llguidance.LLMatcher.validate_grammar(grammar, limits=llguidance.LLParserLimits(**limits))
print("done", flush=True)
"""


def check_trial(name: str, grammar: str, limits: Mapping[str, Any]) -> None:
    """See that llguidance comes to an end over the `grammar`, whatever it says of it.

    Raises:
        DogeExportError: it does not, in the time and the memory that it may take. `name` is in the sentence.
    """
    with _AT_ONCE:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL, str(_SECONDS), str(_BYTES)],
            input=json.dumps([grammar, limits]).encode(),
            capture_output=True,
            check=False,
        )
    if not trial.stdout.startswith(b"done"):
        raise DogeExportError(
            f"{name} asks for too much: what it allows is not known within {_SECONDS} seconds and "
            f"{_BYTES >> 30} GiB.",
            "Leave out patterns that have to hold together (allOf), or shorten it.",
        )
