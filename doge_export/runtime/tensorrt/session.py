"""An engine as a session: a context to read prompts, one to make tokens, and memory that is bound once."""

__all__ = ["EngineCache", "TensorRTSession"]

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from doge_export.cuda import Memory
from doge_export.errors import DogeExportError
from doge_export.runtime.cache import Cache, check_room
from doge_export.runtime.session import Session, checked_call
from doge_export.runtime.tensorrt.lane import Lane
from doge_export.runtime.tensorrt.loading import Loaded, load
from doge_export.tensorrt.folder import Engine


class _Lease:
    """A lane that is in use for as long as somebody knows the lease."""

    def __init__(self, lane: Lane, idle: "deque[Lane]") -> None:
        self.lane = lane
        weakref.finalize(self, idle.append, lane).atexit = False


@dataclass(frozen=True)
class EngineCache:
    """How far a conversation is; its keys and values stay on the GPU."""

    lease: _Lease
    capacity: int
    length: int = 0
    streams: bool = False


class TensorRTSession(Session):
    """An engine on the GPU of this machine. Two calls at once wait for each other.

    Each conversation that is alive has a lane: buffers, a decode context and a CUDA graph of its own. The
    lane of one that has ended serves the next with as many rows. What decodes one text after another has two
    contexts in all.
    """

    bundle: Engine

    def __init__(self, engine: Engine, loaded: Loaded) -> None:
        self.bundle = engine
        self._loaded = loaded
        self._prefill = loaded.new_context("prefill")
        self._logits: Memory | None = None  # of prompts
        self._idle: deque[Lane] = deque()
        self._lock = threading.Lock()

    @classmethod
    def load_engine(cls, engine: Engine) -> "TensorRTSession":
        """Put the engine on the GPU.

        Raises:
            DogeExportError: see doge_export.runtime.tensorrt.loading.load.
        """
        return cls(engine, load(engine))

    @property
    def max_batch(self) -> int:
        """What the engine was built for."""
        return self.bundle.max_batch

    @property
    def versions(self) -> Mapping[str, str]:
        """Of TensorRT."""
        return {self.bundle.runtime: self.bundle.version}

    def new_cache(self, batch: int) -> EngineCache:
        """See Session.

        Raises:
            DogeExportError: the engine takes fewer rows, or the memory of the GPU does not suffice.
        """
        if batch > self.max_batch:
            raise DogeExportError(
                f"The engine takes at most {self.max_batch} rows in a call, and this needs {batch}.",
                f"Build it with --max-batch {batch}.",
            )
        with self._lock:
            self._loaded.cuda.enter()
            lane = self._lane(batch)
            lane.reset()
        capacity = self.bundle.manifest.cache.max_length
        assert capacity is not None, "the target has static caches only"
        return EngineCache(_Lease(lane, self._idle), capacity)

    def step(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
        rope_length: int = 0,
        last: bool = False,
    ) -> tuple[npt.NDArray[np.float32], EngineCache]:
        """See Session."""
        assert isinstance(cache, EngineCache)
        _, sequence = checked_call(input_ids, attention_mask, position_ids, cache)
        check_room(cache.length + sequence, cache.capacity)
        lane = cache.lease.lane
        with self._lock:
            if lane.length != cache.length:
                raise ValueError("this cache was given to a step before, and is spent")
            self._loaded.cuda.enter()
            lane.feed(input_ids, attention_mask, position_ids)
            if sequence == 1:
                logits = lane.decode()
            else:
                room = self._room(lane.logits_size(sequence))
                logits = lane.prefill(self._prefill, sequence, room, last)
            lane.length += sequence
        return logits, replace(cache, length=lane.length)

    def _lane(self, batch: int) -> Lane:
        """An idle one, or a new one in the place of those that are of no use."""
        found = None
        while self._idle:  # what ends meanwhile, in any thread, comes behind
            lane = self._idle.pop()
            if lane.batch == batch and found is None:
                found = lane
        if found is None:
            found = Lane(self._loaded, self.bundle.manifest, batch)
        return found

    def _room(self, size: int) -> Memory:
        if self._logits is None or self._logits.size < size:
            self._logits = None  # before there are two
            self._logits = self._loaded.cuda.allocate(size)
        return self._logits
