"""`python -m context.ours`: a bundle's decode.onnx on a text of a given length, read in pieces."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from context.memory import resident_memory
from doge_export.bench.serve import peak_memory, serve
from doge_export.core.bundle import Bundle
from doge_export.core.memory import release_memory
from doge_export.runtime import Session

_PIECE = 512  # as the runtime reads a prompt
_STEPS = 16  # as it decodes greedily


class Ours:
    """One text of random tokens, and the tokens after it."""

    def open(self, bundle: str, threads: int) -> dict[str, Any]:
        opened = Bundle.open(Path(bundle))
        self._vocab = opened.config.vocab_size
        self._decoder = Session.open(opened, threads=threads).decoder(1)
        assert self._decoder.streams, "this bundle decodes with another cache"
        return {"cache": "bounded"}

    def read(self, context: int) -> dict[str, Any]:
        """Prefill; the peak is that of the process so far."""
        draw = np.random.default_rng(0)
        started = time.perf_counter()
        for at in range(0, context, _PIECE):
            positions = np.arange(at, min(at + _PIECE, context))[None]
            ids = draw.integers(0, self._vocab, positions.shape)
            token_ids, _ = self._decoder.step(ids, positions, rope_length=context)
        release_memory()  # as the runtime does
        self._token, self._at = int(token_ids[0, -1, 0]), context
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "peak": peak_memory(), "resident": resident_memory()}

    def decode(self, calls: int) -> dict[str, Any]:
        """Milliseconds a token of each call."""
        milliseconds = []
        for _ in range(calls):
            started = time.perf_counter()
            ids, _ = self._decoder.step(np.array([[self._token]]), np.array([[self._at]]), steps=_STEPS)
            milliseconds.append((time.perf_counter() - started) / _STEPS * 1e3)
            self._token, self._at = int(ids[0, -1, 0]), self._at + _STEPS
        return {"ms": milliseconds, "peak": peak_memory(), "resident": resident_memory()}


if __name__ == "__main__":
    ours = Ours()
    serve({"open": ours.open, "read": ours.read, "decode": ours.decode})
