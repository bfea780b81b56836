"""`python -m doge_export.bench.worker`: a bundle in our runtime, without torch, measured on request."""

__all__ = ["Ours"]

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from doge_export.bench.serve import peak_memory, serve, timed
from doge_export.runtime import GenerationOptions, Session, open_folder, stream
from doge_export.runtime.calls import MAX_STEPS


class Ours:
    """The bundle, opened once; every round starts a text of its own."""

    session: Session

    def open(self, bundle: str, threads: int) -> dict[str, Any]:
        """Load the graph that greedy decoding uses."""
        told = _Warnings()
        logging.getLogger("doge_export").addHandler(told)
        opened = open_folder(Path(bundle))
        started = time.perf_counter()
        self.session = Session.open(opened, threads)
        tokens = self.session.candidates > 0
        self.session.load(tokens)
        return {
            "seconds": time.perf_counter() - started,
            "graph": (opened.decode_path if tokens and opened.decode_path else opened.model_path).name,
            "native": self.session.library is not None,
            "warnings": told.sentences,
            "versions": {**self.session.versions, "numpy": version("numpy")},
        }

    def round(
        self, prompt: list[int], new_tokens: int, sampling: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Greedy decoding, or with options of GenerationOptions for `sampling`; end-of-text tokens are taken
        for any other."""
        options = GenerationOptions(max_new_tokens=new_tokens, **(sampling or {}))
        return timed(prompt, (event.token for event in stream(self.session, [prompt], options)))

    def rows(self, prompt: list[int], new_tokens: int, rows: int) -> dict[str, Any]:
        """Greedy decoding of `rows` rows in the slots of a pool, all prompts in one call; each prompt begins
        a token later and goes on at the front. The tokens are those of the first row."""
        pool = self.session.pool(rows)
        prompts = (prompt[row % len(prompt) :] + prompt[: row % len(prompt)] for row in range(rows))
        call: dict[int, list[int]] = {pool.open(): tokens for tokens in prompts}
        started = time.perf_counter()
        got = pool.step(call)
        first = time.perf_counter()
        tokens = [int(got[0][0][0, 0])]
        while left := new_tokens - len(tokens):
            call = {slot: [int(ids[-1, 0])] for slot, (ids, _) in got.items()}
            got = pool.step(call, min(left, MAX_STEPS))
            tokens.extend(got[0][0][:, 0].tolist())
        return {
            "prefill_tokens": rows * len(prompt),
            "prefill_seconds": first - started,
            "decode_tokens": rows * (new_tokens - 1),
            "decode_seconds": time.perf_counter() - first,
            "tokens": tokens,
        }

    def memory(self) -> int:
        """Peak resident bytes so far."""
        return peak_memory()


class _Warnings(logging.Handler):
    """Keeps what is said, for the host to say it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


if __name__ == "__main__":
    ours = Ours()
    serve({"open": ours.open, "round": ours.round, "rows": ours.rows, "memory": ours.memory})
