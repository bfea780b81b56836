"""llama.cpp's own server tests against `doge-export serve`: what passes, what does not, and why.

    .venv/bin/python scripts/run_llama_suite.py SOURCE out/bundle
    .venv/bin/python scripts/run_llama_suite.py SOURCE --llama-server BIN --gguf MODEL

SOURCE is a clone of llama.cpp, a git directory, or the sdist of llama-cpp-python (`pip download --no-deps
--no-binary :all: llama-cpp-python`). Its tests are unpacked into a temporary folder and run as they are, with
a shim in the place of llama-server (llama_suite/); none of them is kept. `--llama-server` runs the same
tests on the real one, with the same words left out. Exit code 1: a test fails that
llama_suite/reasons.py has no reason for. The bundle's chat template should know tools; Doge's do.
"""

import argparse
import collections
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_suite.reasons import only_llama
from llama_suite.source import extract

ROOT = Path(__file__).resolve().parent
FILES = (
    "chat_completion", "completion", "security", "compat_anthropic", "compat_oai_responses", "tool_call",
    "basic", "template", "tokenize",
)  # fmt: skip
ENDS = ("passed", "failed", "llama.cpp's own", "set aside")


@dataclass(frozen=True)
class Outcome:
    """What became of one test: one of ENDS, and why."""

    file: str
    name: str
    end: str
    reason: str


def run(arguments: argparse.Namespace, folder: Path) -> list[Outcome]:
    """The outcome of every test of the files."""
    tests = extract(arguments.source, folder / "llama.cpp")
    shim, report = folder / "llama-server", folder / "report"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m llama_suite.shim "$@"\n')
    shim.chmod(0o755)
    # The one thing of the suite's requirements that nothing here uses: it downloads files.
    (folder / "wget.py").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DOGE_SUITE_BUNDLE": "" if arguments.bundle is None else str(arguments.bundle.resolve()),
        "DOGE_SUITE_FOLDER": str(folder),
        "DOGE_SUITE_GGUF": "" if arguments.gguf is None else str(arguments.gguf.resolve()),
        "DOGE_SUITE_LLAMA_SERVER": ""
        if arguments.llama_server is None
        else str(arguments.llama_server.resolve()),
        "DOGE_SUITE_REPORT": str(report),
        "LLAMA_SERVER_BIN_PATH": str(shim),
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join(
            [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, "-m", "pytest", "-p", "llama_suite.plugin", "-p", "no:cacheprovider", "-q"]
    command += ["--tb=short", *(["-k", arguments.keyword] if arguments.keyword else [])]
    command += [f"unit/test_{name}.py" for name in arguments.files]
    subprocess.run(command, cwd=tests, env=environment, stdout=sys.stderr, check=False)
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    return [_outcome(json.loads(line), ours=arguments.llama_server is None) for line in lines]


def _outcome(line: dict[str, str], ours: bool) -> Outcome:
    path, _, name = line["test"].partition("::")
    file = Path(path).stem.removeprefix("test_")
    end, reason = line["outcome"], line["reason"].partition("\n")[0]
    if end == "skipped":
        end = "set aside"
    elif end == "failed" and ours and (why := only_llama(file, name)) is not None:
        end, reason = "llama.cpp's own", why
    return Outcome(file, name, end, reason)


def show(outcomes: Sequence[Outcome], files: Sequence[str]) -> None:
    """Print the table, and beneath it each test that did not pass, with those of one reason together."""
    print(f"| file | {' | '.join(ENDS)} |\n|---|{'---|' * len(ENDS)}")
    for name in (*files, "all"):
        counts = collections.Counter(each.end for each in outcomes if name in (each.file, "all"))
        print(f"| {name} | {' | '.join(str(counts[end]) for end in ENDS)} |")
    for end in ENDS[1:]:
        reasons: dict[str, list[str]] = {}
        for each in outcomes:
            if each.end == end:
                reasons.setdefault(each.reason, []).append(each.name)
        for reason, names in reasons.items():
            print(f"\n{end}: {reason}\n  " + "\n  ".join(names))


def main() -> int:
    parser = argparse.ArgumentParser(description="llama.cpp's own server tests against doge-export serve")
    parser.add_argument("source", type=Path)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--files", nargs="+", default=FILES, choices=FILES, metavar="NAME")
    parser.add_argument("-k", dest="keyword", help="of these the tests that pytest's -k takes")
    parser.add_argument("--llama-server", type=Path, metavar="BIN")
    parser.add_argument("--gguf", type=Path, metavar="MODEL")
    parser.add_argument("--json", type=Path, help="write every outcome there")
    arguments = parser.parse_args()
    if (arguments.bundle is None) == (arguments.llama_server is None):
        parser.error("give a bundle, or --llama-server and --gguf")
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcomes = run(arguments, Path(folder))
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            parser.error(str(error))
    show(outcomes, arguments.files)
    if arguments.json is not None:
        rows = [vars(each) for each in outcomes]
        arguments.json.write_text(f"{json.dumps(rows, indent=1)}\n", encoding="utf-8")
    return 1 if not outcomes or any(each.end == "failed" for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
