"""The regular expressions of an adapter_config.json. Over some of them Python's `re`, which PEFT uses, goes
back and tries again without end, and cannot be stopped: they are tried in a process of its own first."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from doge_export.core.adapters.keys import CONFIG, shown
from doge_export.core.errors import DogeExportError

__all__ = ["Expression", "check_time"]

_LONGEST = 1 << 16  # characters; those that others write have some hundred
_SECONDS = 2  # of a processor, for all names: they take a millisecond
_REMEDY = "Give what PEFT's save_pretrained wrote."
#: Without repetition, choice and groups there is nothing to go back to.
_PLAIN = re.compile(r"[\w.^$\\-]*")
_TRIAL = """
import json, re, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
warnings.simplefilter("ignore")
expressions, names = json.load(sys.stdin)
for number, (text, method) in enumerate(expressions):
    print(number, flush=True)
    match = getattr(re.compile(text), method)
    for name in names:
        match(name)
"""


@dataclass(frozen=True)
class Expression:
    """The expression that PEFT makes of the `value` of `key`. `whole`: it must match all of a name, and
    not only its beginning."""

    key: str
    value: str
    pattern: re.Pattern[str]
    whole: bool = False

    @classmethod
    def compile(
        cls, folder: Path, key: str, value: str, expression: str, whole: bool = False
    ) -> "Expression":
        """The regular `expression` that PEFT makes of the `value` of `key`.

        Raises:
            DogeExportError: it is none, or far too long.
        """
        if len(expression) > _LONGEST:
            raise DogeExportError(
                f"{folder / CONFIG} has {shown(value)} in {key}, of {len(value):,} characters, and "
                f"{_LONGEST:,} are the most.",
                _REMEDY,
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # FutureWarning: possible nested set
                return cls(key, value, re.compile(expression), whole)
        except (re.error, RecursionError, OverflowError) as error:
            raise DogeExportError(
                f"{folder / CONFIG} has {shown(value)} in {key}, which is no regular expression: {error}.",
                _REMEDY,
            ) from None

    def match(self, name: str) -> re.Match[str] | None:
        """The match of a module's name."""
        return self.pattern.fullmatch(name) if self.whole else self.pattern.match(name)


def check_time(folder: Path, expressions: Iterable[Expression], names: Iterable[str]) -> None:
    """See that all `expressions` of the adapter in `folder` come to an end on all `names`.

    Raises:
        DogeExportError: naming one that does not.
    """
    tried = [each for each in expressions if not _PLAIN.fullmatch(each.value)]
    if not tried:
        return
    patterns = [[each.pattern.pattern, "fullmatch" if each.whole else "match"] for each in tried]
    trial = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TRIAL, str(_SECONDS)],
        input=json.dumps([patterns, list(names)]).encode(),
        capture_output=True,
        check=False,
    )
    if trial.returncode:
        begun = trial.stdout.split()
        if not begun:
            trial.check_returncode()  # Python itself did not start
        slow = tried[int(begun[-1])]
        raise DogeExportError(
            f"{folder / CONFIG} has {shown(slow.value)} in {slow.key}, a regular expression that does not "
            f"come to an end on the names of the modules within {_SECONDS} seconds.",
            "Write the names as a list, or an expression without repetitions of repetitions.",
        )
