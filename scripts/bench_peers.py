"""Doge's decoders on this machine, in one interleaved run: ours, transformers, onnxruntime, llama.cpp.

    .venv/bin/python scripts/bench_peers.py                         # everything, an hour
    .venv/bin/python scripts/bench_peers.py --quick                 # whether it all runs
    .venv/bin/python scripts/bench_peers.py --models Doge-20M --peers eager llama Q8 int8 roofline --rounds 3

Presets with random weights; greedy, batch 1. Each peer is a process that lives as long as its model is
measured, and they take turns: round by round, peer by peer, so that a change of the machine's speed meets
all of them. Rates are those of the best round; all rounds are in build/peers/peers.json. llama.cpp and
onnxruntime's contrib operators run a Llama of the same shape, for they know no Doge. What else the peers need
is installed into build/peers/venv once: llama-cpp-python is compiled there for this processor, which takes
minutes. A peer that cannot be installed or fails is listed with its reason.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export import plugin_library
from doge_export.bench.machine import describe
from doge_export.bench.process import Worker
from doge_export.core.errors import DogeExportError
from peers.files import Files, prepare
from peers.plot import draw
from peers.report import markdown
from peers.table import PEERS, Peer, Run

ROOT = Path(__file__).resolve().parent.parent

#: What the peers' environment holds; llama-cpp-python from its source, for this processor's instructions.
PACKAGES: tuple[tuple[str, ...], ...] = (
    ("gguf>=0.19", "numpy>=2.4"),
    ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0"),
    ("--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36"),
)
_SETTLE = 0.1  # seconds in which the threads of the peer before stop spinning


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def install(folder: Path) -> Path:
    """The interpreter of the peers' environment, made and filled where it is not yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    for packages in PACKAGES:
        stamp = folder / f"{packages[-1].replace('=', '-')}.installed"
        if stamp.exists():
            continue
        say(f"installing {' '.join(packages)}")
        header = ROOT / "scripts" / "peers" / "tile_config.h"
        environment = {
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
            "CXXFLAGS": f"-include {shlex.quote(str(header))}",
            **os.environ,
        }
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        result = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            say(f"not installed: {(result.stderr.strip().splitlines() or ['pip said nothing'])[-1]}")
        else:
            stamp.touch()
    return python


class Running:
    """A peer's process, and what it measured; `failed` ends its part."""

    def __init__(self, peer: Peer, files: Files, run: Run, threads: int, python: Path) -> None:
        self.peer, self.threads = peer, threads
        self.rates: dict[str, list[float]] = {}
        self.result: dict[str, Any] = {
            "model": files.preset,
            "threads": threads,
            "peer": peer.name,
            "same_bits": peer.same_bits,
        }
        self._worker: Worker | None = None
        if peer.dense and files.config.is_moe:
            self._fail(RuntimeError("it has no such experts"))
            return
        try:
            arguments = peer.arguments(files, run)
            path = [str(ROOT), str(ROOT / "scripts")]
            self._worker = (
                Worker(peer.module, path=[*path, *sys.path])
                if peer.own
                else Worker(peer.module, str(python), path)
            )
            opened = self._worker.call("open", threads=threads, **arguments)
            self.result |= {"load_seconds": opened.pop("seconds"), **opened}
        except (RuntimeError, DogeExportError) as error:
            self._fail(error)

    def measure(self, part: str, prompt: Sequence[int], new_tokens: int, count: bool) -> None:
        """Run one round, unless the peer has failed or is not measured for this."""
        if self._worker is None or part not in self.peer.parts:
            return
        time.sleep(_SETTLE)
        try:
            figures = self._worker.call("round", prompt=list(prompt), new_tokens=new_tokens)
        except (RuntimeError, DogeExportError) as error:
            self._fail(error)
            return
        if count:
            rate = figures[f"{part}_tokens"] / figures[f"{part}_seconds"]
            self.rates.setdefault(part, []).append(rate)

    def finish(self) -> dict[str, Any]:
        """End the process, and return what it measured."""
        if self._worker is not None:
            self.result["peak_memory_bytes"] = self._worker.call("memory")
            self._worker.close()
        self.result["best"] = {part: max(rates) for part, rates in self.rates.items()}
        self.result["median"] = {part: statistics.median(rates) for part, rates in self.rates.items()}
        self.result["rounds"] = self.rates
        return self.result

    def _fail(self, error: Exception) -> None:
        self.result["failed"] = str(error).splitlines()[0]
        say(f"  {self.peer.name}: {self.result['failed']}")
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def measure(
    files: Files, peers: Sequence[Peer], run: Run, threads: int, rounds: int, python: Path
) -> list[dict[str, Any]]:
    """Measure all rounds of one model with one number of threads."""
    running = []
    for peer in peers:
        say(f"{files.preset}, {threads} threads: loading {peer.name}")
        running.append(Running(peer, files, run, threads, python))
    draw = random.Random(0)
    for part, length, new in (
        ("decode", run.prompt_tokens, run.new_tokens),
        ("prefill", run.prefill_tokens, 1),
    ):
        for number in range(rounds + 1):
            say(f"{files.preset}, {threads} threads: {part}, {f'round {number}' if number else 'warm-up'}")
            prompt = [draw.randrange(files.config.vocab_size) for _ in range(length)]
            for one in running:
                one.measure(part, prompt, new, count=number > 0)
    return [one.finish() for one in running]


def chosen(words: Sequence[str] | None) -> list[Peer]:
    """The peers whose name holds one of the words; all without any."""
    if words is None:
        return list(PEERS)
    peers = [peer for peer in PEERS if any(word.lower() in peer.name.lower() for word in words)]
    if not peers:
        raise SystemExit(
            f"no peer is called {' or '.join(words)}; there are {', '.join(p.name for p in PEERS)}"
        )
    return peers


def library() -> str | None:
    """The native library's path, where it is built."""
    try:
        return str(plugin_library())
    except DogeExportError:
        return None


def commit() -> str | None:
    """The commit measured, marked where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["Doge-20M", "Doge-60M", "Doge-160M", "Doge-20M-MoE"])
    parser.add_argument("--peers", nargs="+", metavar="WORD", help="those whose name holds one of the words")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens, the first model only")
    parser.add_argument("--keep", action="store_true", help="use the bundles of the run before")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--plot", type=Path, help="the picture; of a whole run docs/pictures/speed.svg")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.rounds = arguments.models[:1], 1
        arguments.new_tokens, arguments.prefill_tokens = 8, 64
    if min(arguments.rounds, *arguments.threads, arguments.prompt_tokens, arguments.prefill_tokens) < 1:
        parser.error("rounds, threads and tokens are 1 or more")
    if arguments.new_tokens < 2:
        parser.error("--new-tokens is 2 or more: the first one is prefill's")
    peers = chosen(arguments.peers)
    python = install(arguments.build / "venv")
    run = Run(arguments.prompt_tokens, arguments.new_tokens, arguments.prefill_tokens, library())
    report: dict[str, Any] = {
        "command": shlex.join(["scripts/bench_peers.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": describe(),
        "run": {
            "models": arguments.models,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "prompt_tokens": run.prompt_tokens,
            "new_tokens": run.new_tokens,
            "prefill_tokens": run.prefill_tokens,
        },
        "results": [],
    }
    bundles = list(dict.fromkeys(peer.bundle for peer in peers if peer.bundle))
    for model in arguments.models:
        files = prepare(model, arguments.build / "models", bundles, arguments.keep, say)
        for threads in arguments.threads:
            report["results"] += measure(files, peers, run, threads, arguments.rounds, python)
            (arguments.build / "peers.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    (arguments.build / "peers.md").write_text(text, encoding="utf-8")
    print(text)
    whole = not arguments.quick and arguments.peers is None
    draw(report, arguments.plot or (ROOT / "docs" / "pictures" if whole else arguments.build) / "speed.svg")


if __name__ == "__main__":
    main()
