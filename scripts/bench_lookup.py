"""Prompt lookup against none, on a text that repeats its prompt: tokens/s of both, in turns.

    .venv/bin/python scripts/bench_lookup.py BUNDLE ...

Greedy. The prompt is the text that the model itself went on with for --warm-up tokens, since small models go
in circles; `--fresh` takes a prompt of random tokens, where there is little to look up, and shows what trying
costs. Texts must be equal.
"""

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.bench.machine import describe
from doge_export.core.bundle import Bundle
from doge_export.runtime import GenerationOptions, Session, generate, token_strategy


def several(session: Session, read: Any, first: int, draws: Any) -> token_strategy.SeveralTokens:
    return token_strategy.SeveralTokens(session, 1, read, first, draws)


def timed(session: Session, prompt: list[int], tokens: int, lookup: bool) -> tuple[float, list[int]]:
    """Tokens/s after the first, and the text."""
    other = contextlib.nullcontext() if lookup else patch.object(token_strategy, "LookupTokens", several)
    with other:
        result = generate(session, [prompt], GenerationOptions(max_new_tokens=tokens))
    statistic = result.statistics
    return statistic.decode_tokens / statistic.decode_seconds, list(result.completions[0].ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=200, help="tokens of the prompt")
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    print(describe())
    for folder in arguments.bundles:
        session = Session.open(Bundle.open(folder), threads=arguments.threads)
        rng = np.random.default_rng(0)
        prompt = rng.integers(3, session.bundle.config.vocab_size, 16).tolist()
        if not arguments.fresh:
            prompt += timed(session, prompt, arguments.warm_up, False)[1]
        rates: dict[bool, list[float]] = {True: [], False: []}
        for number in range(arguments.rounds + 1):
            texts = {}
            for lookup in (True, False):
                rate, texts[lookup] = timed(session, prompt, arguments.new_tokens, lookup)
                if number:
                    rates[lookup].append(rate)
            assert texts[True] == texts[False], "drafts changed the text"
        with_, without = (statistics.median(rates[kind]) for kind in (True, False))
        print(f"{folder}: {with_:,.0f} tokens/s with lookup, {without:,.0f} without: {with_ / without:.2f}")


if __name__ == "__main__":
    main()
