"""Generation for many clients at once: a thread that makes tokens for all of them, and an event loop that
listens."""

__all__ = ["Busy", "Ended", "GenerationTask", "TextService"]

import asyncio
import collections
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event, Session, Statistics
from doge_export.runtime.scheduling import (
    CacheLimits,
    Cancelled,
    Job,
    PrefixFiles,
    PrefixStore,
    Scheduler,
    identity_of,
)
from doge_export.runtime.worker import Worker
from doge_export.serve.requests import TextRequest

_log = logging.getLogger(__name__)

_MAX_EVENTS = 1024  # events that may wait for a slow client before its generation pauses


def _why_not(session: Session) -> str:
    """Return why nothing is kept of texts."""
    return "--prefix-bytes is 0" if session.pools else "the texts of this bundle do not share calls"


class Busy(Exception):
    """The queue of waiting requests is full."""


class Ended(Exception):
    """The client went away, or the server ends; the text is not whole."""


class TextService:
    """Generates text on one session: `parallel` texts at once share their calls, each with the bits that it
    has alone (runtime/scheduling); the requests of `waiting` more wait for their turn.

    `caches`: what the caches may take, and where beginnings of texts are kept for texts to come.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        parallel: int = 32,
        waiting: int = 256,
        caches: CacheLimits | None = None,
    ) -> None:
        self.session, self.tokenizer = session, tokenizer
        self._max_tasks = parallel + waiting
        caches, files = caches or CacheLimits(), None
        if caches.state_folder is not None:
            if session.pools and caches.prefix_bytes > 0:
                files = PrefixFiles(caches.state_folder, identity_of(session), caches.state_bytes)
            else:
                _log.warning("Nothing is kept in %s: %s.", caches.state_folder, _why_not(session))
        self._scheduler = Scheduler(
            session, parallel, PrefixStore(caches.prefix_bytes, files), caches.cache_bytes
        )
        self._cache_bytes = caches.cache_bytes
        self._tasks: set[GenerationTask] = set()
        self._closed = False
        self._worker = Worker(session, tokenizer, self._scheduler)

    def start(self, request: TextRequest) -> "GenerationTask":
        """Begin, or take a place among those that wait. In the event loop's thread.

        Raises:
            Busy: there is no place.
        """
        if len(self._tasks) >= self._max_tasks or self._closed:
            raise Busy
        task = GenerationTask(self.tokenizer, request, self._worker.wake, self._tasks.discard)
        self._tasks.add(task)
        self._worker.submit(task.job)
        return task

    def snapshot(self) -> dict[str, Any]:
        """Return what there is now: requests that run and that wait, the slots for their texts, and bytes and
        uses of the caches. From any thread; the figures may be of moments apart."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        rows, use = scheduler.rows, scheduler.prefixes.use
        each, limit = 0 if pool is None else pool.bytes // pool.slots, self._cache_bytes
        return {
            "running": (running := min(scheduler.running, len(self._tasks))),
            "waiting": len(self._tasks) - running,
            "slots": [
                {
                    "id": slot,
                    "is_processing": slot < rows,
                    "cache_bytes": each if pool is not None and slot < pool.slots else 0,
                    "cache_limit_bytes": limit,
                }
                for slot in range(scheduler.max_rows)
            ],
            "pool_bytes": 0 if pool is None else pool.bytes,
            "prefix_bytes": scheduler.prefixes.bytes,
            "prefix_lookups": use.lookups,
            "prefix_hits": use.hits,
            "prefix_tokens": use.tokens,
        }

    def cancel(self) -> None:
        """End every generation after its next token, those that wait too."""
        for task in list(self._tasks):
            task.cancel()

    def close(self) -> None:
        """Cancel every generation, and end the thread."""
        self._closed = True
        self.cancel()
        self._worker.close()
        self._scheduler.close()


class GenerationTask:
    """One request's generation, between the thread that makes its tokens and the client's coroutine."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: TextRequest,
        wake: Callable[[], None],
        ended: Callable[["GenerationTask"], None],
    ) -> None:
        self.job = Job(
            request.prompts,
            request.options,
            tokenizer,
            self._deliver,
            self._finish,
            request.constraints(),
            request.salt,
        )
        self._wake_worker, self._ended = wake, ended
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._events: collections.deque[Event] = collections.deque()
        self._over = self._waking = False
        self._error: BaseException | None = None

    @property
    def statistics(self) -> Statistics:
        """Tokens and seconds, so far."""
        return self.job.statistics

    def cancel(self) -> None:
        """Stop after the token, or the piece of the prompt, that is under way."""
        self.job.cancelled = True
        self._wake_worker()

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Yield the tokens as they come, all that are there at once; the generation ends with the iteration.

        Raises:
            DogeExportError: see `doge_export.runtime.stream`.
            Ended: it was cancelled.
        """
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                over = self._over  # read first: what came before it is in the queue
                batch = [self._events.popleft() for _ in range(len(self._events))]
                if batch:
                    yield batch
                    if self.job.paused and len(self._events) < _MAX_EVENTS:
                        self.job.paused = False
                        self._wake_worker()
                if over and not self._events:
                    if isinstance(self._error, Cancelled):
                        raise Ended
                    if self._error is not None:
                        raise self._error
                    return
        finally:
            self.cancel()

    def _deliver(self, events: list[Event]) -> None:
        """Take new events. In the scheduler's thread, as `_finish`."""
        self._events.extend(events)
        self.job.paused = len(self._events) >= _MAX_EVENTS
        self._wake()

    def _finish(self, error: BaseException | None) -> None:
        self._error, self._over = error, True
        self._wake()
        statistics = self.statistics
        _log.info(
            "%d prompt tokens at %.0f/s, %d more at %.0f/s, %.2f s%s",
            statistics.prefill_tokens,
            statistics.prefill_tokens_per_second,
            statistics.decode_tokens,
            statistics.decode_tokens_per_second,
            self.job.seconds,
            " (not whole: cancelled)" if isinstance(error, Cancelled | Ended) else "",
        )

    def _wake(self) -> None:
        # Once until the loop has looked: each call writes a byte to the pipe that wakes it, and signals write
        # to the same. The loop may have been closed under a generation that ends late.
        if (self._over or not self._waking) and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self._woken)

    def _woken(self) -> None:
        self._waking = False  # first: what comes from here on wakes the loop again
        self._ready.set()
        if self._over:
            self._ended(self)
            # Job and task hold each other until the collector comes; a session need not wait for it.
            self._wake_worker = _nothing


def _nothing() -> None:
    """What is to be done for a task that is over."""
