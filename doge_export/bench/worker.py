"""`python -m doge_export.bench.worker`: a bundle in our runtime, without torch, measured on request."""

__all__ = ["Ours"]

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from doge_export.bench.serve import peak_memory, serve, timed
from doge_export.runtime import GenerationOptions, Session, open_folder, stream


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

    def round(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy decoding, end-of-text tokens taken for any other."""
        options = GenerationOptions(max_new_tokens=new_tokens)
        return timed(prompt, (event.token for event in stream(self.session, [prompt], options)))

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
    serve({"open": ours.open, "round": ours.round, "memory": ours.memory})
