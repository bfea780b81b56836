"""Generation for several clients at once: threads that generate, and an event loop that listens."""

__all__ = ["Busy", "Ended", "GenerationTask", "TextService"]

import asyncio
import collections
import logging
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event, Session, Statistics, stream
from doge_export.serve.requests import TextRequest

_log = logging.getLogger(__name__)

_MAX_EVENTS = 1024  # events that may wait for a slow client before its generation pauses
_LOOK = 0.2  # seconds after which a paused generation looks whether its client is still there


class Busy(Exception):
    """The queue of waiting requests is full."""


class Ended(Exception):
    """The client went away, or the server ends; the text is not whole."""


class TextService:
    """Generates text for `parallel` requests at once on one session; up to `waiting` more wait for their
    turn.

    Every request has a cache of its own; the session and its weights are shared.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, parallel: int = 4, waiting: int = 64) -> None:
        self.session, self.tokenizer = session, tokenizer
        self._max_tasks = parallel + waiting
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="generate")
        self._tasks: set[GenerationTask] = set()

    def start(self, request: TextRequest) -> "GenerationTask":
        """Begin, or take a place among those that wait. In the event loop's thread.

        Raises:
            Busy: there is no place.
        """
        if len(self._tasks) >= self._max_tasks:
            raise Busy
        task = GenerationTask(self.session, self.tokenizer, request)
        self._tasks.add(task)
        future = self._threads.submit(task.generate)
        asyncio.wrap_future(future).add_done_callback(lambda _: self._tasks.discard(task))
        return task

    def cancel(self) -> None:
        """End every generation after its next token, those that wait too."""
        for task in list(self._tasks):
            task.cancel()

    def close(self) -> None:
        """Cancel every generation, and end the threads."""
        self.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)


class GenerationTask:
    """One request's generation, between the thread that makes its tokens and the client's coroutine."""

    def __init__(self, session: Session, tokenizer: Tokenizer, request: TextRequest) -> None:
        self._session, self._tokenizer, self._request = session, tokenizer, request
        self.statistics = Statistics()
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._events: collections.deque[Event] = collections.deque()
        self._room = threading.Semaphore(_MAX_EVENTS)
        self._gone = threading.Event()
        self._over = self._waking = False
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Stop after the token, or the piece of the prompt, that is under way."""
        self._gone.set()

    def generate(self) -> None:
        """Make the tokens. In a thread of its own."""
        started = time.perf_counter()
        try:
            self._check()
            request = self._request
            prompts, options = request.prompts, request.options
            for event in stream(
                self._session,
                prompts,
                options,
                self._tokenizer,
                self.statistics,
                lambda _: self._check(),
                request.constraints(),
            ):
                self._check()
                while not self._room.acquire(timeout=_LOOK):
                    self._check()
                self._events.append(event)
                self._wake()
        except BaseException as error:  # the coroutine raises it
            self._error = error
        self._over = True
        self._wake()
        statistics = self.statistics
        note = " (not whole: cancelled)" if isinstance(self._error, Ended) else ""
        _log.info(
            "%d prompt tokens at %.0f/s, %d more at %.0f/s, %.2f s%s",
            statistics.prefill_tokens,
            statistics.prefill_tokens_per_second,
            statistics.decode_tokens,
            statistics.decode_tokens_per_second,
            time.perf_counter() - started,
            note,
        )

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
                    self._room.release(len(batch))
                    yield batch
                if over and not self._events:
                    if self._error is not None:
                        raise self._error
                    return
        finally:
            self.cancel()

    def _check(self) -> None:
        if self._gone.is_set():
            raise Ended

    def _wake(self) -> None:
        # Once until the loop has looked: each call writes a byte to the pipe that wakes it, and signals write
        # to the same. The loop may have been closed under a generation that ends late.
        if not self._waking and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self._woken)

    def _woken(self) -> None:
        self._waking = False  # first: what comes from here on wakes the loop again
        self._ready.set()
