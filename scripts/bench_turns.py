"""A conversation's next turn beside a new prompt: milliseconds to the first token, in the scheduler alone.

    .venv/bin/python scripts/bench_turns.py BUNDLE --history 3900 --turns 4

A text of `--history` tokens is read and answered; then each turn adds 20 tokens to all of it. What a turn
need not read lies in the slot where the last one ended, or is copied from what was kept.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

from doge_export.runtime import Event, GenerationOptions, Session
from doge_export.runtime.scheduling import Job, PrefixStore, Scheduler

_NEW, _ANSWER = 20, 64  # tokens of a turn, and of what answers it


class Asked:
    """Milliseconds to the first token of a text, and its tokens."""

    def __init__(self, scheduler: Scheduler, prompt: list[int]) -> None:
        self.tokens: list[int] = []
        self.first = 0.0
        self._begun = time.perf_counter()
        scheduler.add(Job([prompt], GenerationOptions(max_new_tokens=_ANSWER), None, self._take))
        while not scheduler.idle:
            scheduler.step()

    def _take(self, events: list[Event]) -> None:
        self.first = self.first or (time.perf_counter() - self._begun) * 1e3
        self.tokens += [event.token for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--history", type=int, default=3900)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    session = Session.open(arguments.bundle)
    scheduler = Scheduler(session, prefixes=PrefixStore(256 << 20))
    rng, vocab = random.Random(0), session.bundle.config.vocab_size

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(count)]

    Asked(scheduler, ids(_NEW))  # warm
    for _ in range(arguments.rounds):
        new = statistics.median(Asked(scheduler, ids(_NEW)).first for _ in range(5))
        text = ids(arguments.history)
        first = Asked(scheduler, text)
        text, turns = text + first.tokens, []
        for _ in range(arguments.turns):
            turn = Asked(scheduler, text := [*text, *ids(_NEW)])
            text += turn.tokens
            turns.append(turn.first)
        shown = ", ".join(f"{turn:.1f}" for turn in turns)
        print(
            f"a new prompt of {_NEW}: {new:.1f} ms; of {arguments.history}: {first.first:.0f}; turns: {shown}"
        )


if __name__ == "__main__":
    main()
