"""An engine as a session: a context for prefill, one for decode steps, and memory that is bound once."""

__all__ = ["EngineCache", "TensorRTSession"]

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from doge_export.core.errors import DogeExportError
from doge_export.runtime.cache import Cache, check_room
from doge_export.runtime.session import Session, checked_call
from doge_export.runtime.tensorrt.driver import Memory
from doge_export.runtime.tensorrt.engine_folder import Engine
from doge_export.runtime.tensorrt.loading import Loaded, load
from doge_export.runtime.tensorrt.slot import Slot


class _HeldSlot:
    """A slot in use, which is idle again once nobody refers to this object."""

    def __init__(self, slot: Slot, idle: "deque[Slot]") -> None:
        self.slot = slot
        weakref.finalize(self, idle.append, slot).atexit = False


@dataclass(frozen=True)
class EngineCache:
    """The length of a conversation, and its slot; keys and values stay on the GPU."""

    held: _HeldSlot
    capacity: int
    length: int = 0
    streams: bool = False


class TensorRTSession(Session):
    """An engine on the GPU of this machine. Two calls at once wait for each other.

    Each conversation that is alive has a slot: buffers, a decode context and a CUDA graph of its own. The
    slot of one that has ended serves the next with as many rows. What decodes one text after another has two
    contexts in all.
    """

    bundle: Engine

    def __init__(self, engine: Engine, loaded: Loaded) -> None:
        self.bundle = engine
        self._loaded = loaded
        self._prefill = loaded.new_context("prefill")
        self._logits: Memory | None = None  # of prompts
        self._idle: deque[Slot] = deque()
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
        """The most rows of a call that the engine was built for."""
        return self.bundle.max_batch

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of TensorRT."""
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
            slot = self._take_slot(batch)
            slot.reset()
        capacity = self.bundle.manifest.cache.max_length
        assert capacity is not None, "the target has static caches only"
        return EngineCache(_HeldSlot(slot, self._idle), capacity)

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
        slot = cache.held.slot
        with self._lock:
            if slot.length != cache.length:
                raise ValueError("this cache was given to a step before, and is spent")
            self._loaded.cuda.enter()
            slot.set_inputs(input_ids, attention_mask, position_ids)
            if sequence == 1:
                logits = slot.decode()
            else:
                room = self._room(slot.logits_size(sequence))
                logits = slot.prefill(self._prefill, sequence, room, last)
            slot.length += sequence
        return logits, replace(cache, length=slot.length)

    def _take_slot(self, batch: int) -> Slot:
        """Return an idle slot of `batch` rows, or a new one; idle slots of other sizes are freed."""
        chosen = None
        while self._idle:  # what ends meanwhile, in any thread, comes behind
            slot = self._idle.pop()
            if slot.batch == batch and chosen is None:
                chosen = slot
        if chosen is None:
            chosen = Slot(self._loaded, self.bundle.manifest, batch)
        return chosen

    def _room(self, size: int) -> Memory:
        if self._logits is None or self._logits.size < size:
            self._logits = None  # before there are two
            self._logits = self._loaded.cuda.allocate(size)
        return self._logits
