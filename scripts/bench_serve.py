"""Load on `doge-export serve`: tokens/s, the time to the first token and the gaps between events, by streams.

    .venv/bin/python scripts/bench_serve.py BUNDLE --streams 1 8 32 --temperature 0.8 --top-p 0.9
    .venv/bin/python scripts/bench_serve.py --url http://127.0.0.1:8000 ...

Prompts are pieces of models/heldout.txt, the same ones in every run, and every request has a seed of its
own. The generator shares the machine's cores with the server, as others' do: compare two servers in turns.
`--leave 0.1` has one client in ten go away after its first tokens. `--check` asks for every finished text
once more, alone, and counts those that differ. `--mixed` draws the settings of each request, too: greedy and
drawn, penalties, rules, stop texts, lengths. Memory and descriptors of the server are shown as well, in
a long run after every thousand requests. `--generate` writes the same texts in this process, one after
another, in turns with one stream of the server.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parent.parent
WORDS = (16, 32, 64, 128, 200)  # of a prompt
_EVERY = 1000


class Load:
    """What the requests of one run took, in seconds."""

    def __init__(self, arguments: argparse.Namespace, url: str, pid: int | None = None) -> None:
        self._arguments, self._url, self._pid = arguments, url, pid
        self._asked = 0
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.tokens = self.failed = self.left = 0
        self.texts: dict[int, str] = {}

    async def run(self, streams: int, bodies: list[dict[str, Any]]) -> float:
        """Ask for all, so many at a time; returns the seconds of the whole."""
        waiting = iter(enumerate(bodies))
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=self._url, timeout=600, limits=limits) as client:

            async def stream() -> None:
                for number, body in waiting:
                    await self._ask(client, number, body)
                    self._asked += 1
                    if self._pid is not None and self._asked % _EVERY == 0:
                        print(f"  after {self._asked:,} requests{held(self._pid)}", flush=True)

            begun = time.perf_counter()
            await asyncio.gather(*(stream() for _ in range(streams)))
            return time.perf_counter() - begun

    async def _ask(self, client: httpx2.AsyncClient, number: int, body: dict[str, Any]) -> None:
        leaves = random.Random(number).random() < self._arguments.leave
        begun, last, text = time.perf_counter(), 0.0, ""
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                self.failed += 1
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                now = time.perf_counter()
                if last:
                    self.gaps.append(now - last)
                else:
                    self.first.append(now - begun)
                last, event = now, json.loads(line[5:])
                text += "".join(choice["text"] for choice in event["choices"])
                self.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
                if leaves and len(text) > 20:
                    self.left += 1
                    return
        self.texts[number] = text


def bodies(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the requests of a run."""
    words = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8").split()
    rng = random.Random(1)
    requests = []
    for seed in range(arguments.requests):
        count = rng.choice(WORDS)
        at = rng.randrange(len(words) - count)
        requests.append(
            {
                "prompt": " ".join(words[at : at + count]),
                "max_tokens": arguments.new_tokens,
                "temperature": arguments.temperature,
                "top_p": arguments.top_p,
                "seed": seed,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        if arguments.mixed:
            requests[-1] |= mixed(rng, arguments.new_tokens)
    return requests


def mixed(rng: random.Random, most: int) -> dict[str, Any]:
    """Return settings of one request."""
    penalties: dict[str, Any] = rng.choice(
        [{}, {}, {}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.7}, {"repetition_penalty": 1.2}]
    )
    rules: dict[str, Any] = rng.choice(
        [{}] * 8 + [{"guided_regex": "[a-z ]{10,40}"}, {"guided_choice": ["yes", "no"]}]
    )
    return {
        "max_tokens": rng.choice([1, 4, most // 2 or 1, most]),
        "temperature": rng.choice([0, 0, 0.7, 1.2]),
        "top_p": rng.choice([1.0, 0.9]),
        "top_k": rng.choice([0, 40]),
        "min_tokens": rng.choice([0, 0, 1]),
        "stop": rng.choice([None, None, [" the"], ["\n", "."]]),
        **penalties,
        **rules,
    }


@contextlib.contextmanager
def served(bundle: Path) -> Generator[tuple[str, int]]:
    """Serve the bundle; give the address and the process."""
    command = [sys.executable, "-m", "doge_export", "-q", "serve", str(bundle), "--port", "0", "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the server ended"
            said += line
        try:
            yield json.loads(said)["url"], process.pid
        finally:
            process.send_signal(signal.SIGINT)


def held(pid: int | None) -> str:
    """Return the memory and the descriptors of the server, where it is ours and the system shows them."""
    status = Path(f"/proc/{pid}/status")
    if pid is None or not status.exists():
        return ""
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return f"; server: {int(kilobytes) / 1024:,.0f} MiB, {descriptors} descriptors"


def milliseconds(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{statistics.median(ordered) * 1e3:.1f} / {p99 * 1e3:.1f}"


async def measure(arguments: argparse.Namespace, url: str, pid: int | None) -> None:
    requests = bodies(arguments)
    await Load(arguments, url).run(1, requests[:1])  # warm
    print(f"before{held(pid)}")
    for streams in arguments.streams:
        load = Load(arguments, url, pid)
        seconds = await load.run(streams, requests)
        print(
            f"{streams} streams: {load.tokens / seconds:,.0f} tokens/s; first token "
            f"{milliseconds(load.first)} ms, gaps {milliseconds(load.gaps)} ms (median / p99); "
            f"{len(load.texts)} finished, {load.left} left, {load.failed} failed{held(pid)}"
        )
        if arguments.check:
            alone = Load(argparse.Namespace(leave=0), url)
            numbers = sorted(load.texts)
            await alone.run(1, [requests[number] for number in numbers])
            others = sum(alone.texts[at] != load.texts[number] for at, number in enumerate(numbers))
            print(f"  {others} of {len(numbers)} texts are others when they are asked for alone")


def generated(bundle: Path, requests: list[dict[str, Any]]) -> float:
    """Write the texts of the requests here, one after another; returns tokens a second."""
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.runtime import GenerationDefaults, Session, generate, open_folder

    opened = open_folder(bundle)
    tokenizer, defaults = Tokenizer.load(opened.path), GenerationDefaults.of(opened)
    session = Session.open(opened)
    session.load_for_text()
    tokens, begun = 0, 0.0
    for number, body in enumerate([requests[0], *requests]):  # the first one is to warm up
        settings = {name: body[name] for name in ("temperature", "top_p", "seed")}
        options = defaults.changed(max_new_tokens=body["max_tokens"], **settings)
        (text,) = generate(session, [tokenizer.encode(body["prompt"])], options, tokenizer).completions
        tokens += len(text.ids) if number else 0
        begun = begun or time.perf_counter()
    return tokens / (time.perf_counter() - begun)


async def beside_generate(arguments: argparse.Namespace, url: str) -> None:
    """Print the speed of a stream over that of `generate`, turn by turn."""
    requests = bodies(arguments)
    await Load(arguments, url).run(1, requests[:1])  # warm
    for _ in range(arguments.generate):
        here = generated(arguments.bundle, requests)
        load = Load(arguments, url)
        seconds = await load.run(1, requests)
        served_speed = load.tokens / seconds
        print(f"generate {here:,.0f} tokens/s, a stream {served_speed:,.0f}: {served_speed / here:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--leave", type=float, default=0.0, help="the share of clients that go away")
    parser.add_argument("--mixed", action="store_true", help="draw the settings of each request")
    parser.add_argument("--check", action="store_true", help="ask for every text again, alone")
    parser.add_argument(
        "--generate", type=int, metavar="TURNS", help="turns beside `generate`, of one stream"
    )
    arguments = parser.parse_args()
    if arguments.generate and arguments.bundle is None:
        parser.error("--generate needs the bundle")
    if (arguments.bundle is None) == (arguments.url is None):
        parser.error("give a bundle or --url")
    if arguments.url is not None:
        asyncio.run(measure(arguments, arguments.url, None))
        return
    with served(arguments.bundle.resolve()) as (url, pid):
        asyncio.run(beside_generate(arguments, url) if arguments.generate else measure(arguments, url, pid))


if __name__ == "__main__":
    main()
