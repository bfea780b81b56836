"""The models of a server, of which those are in memory that are asked for.

A route asks for one by its name, and knows nothing of loading. All of this runs in the event loop's thread;
what takes time, loading and closing, in threads beside it.
"""

__all__ = ["Loaded", "NotLoaded", "Offer", "Registry", "State"]

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.memory import release_memory
from doge_export.serve.contracts import Service
from doge_export.serve.errors import shown
from doge_export.serve.names import ModelNames
from doge_export.serve.requests import RequestReader
from doge_export.serve.service import Busy, Ended

_log = logging.getLogger(__name__)

_MAX_WAITING = 128  # requests that wait for one model to be loaded: the others have places left


class NotLoaded(DogeExportError):
    """A model could not be loaded."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory: what generates, and what reads its requests. `about`: its precision and its cache,
    in a few words."""

    service: Service
    reader: RequestReader
    about: str = ""


@dataclass(frozen=True)
class Offer:
    """A model that can be asked for. `load` is called in a thread, and again after it was let go."""

    name: str
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class State:
    """What there is of a model now: its service, while it is loaded, and how often it was."""

    service: Service | None
    loads: int


class _Entry:
    """A model, and where it is on its way: gone, `ready` is awaited, `loaded`, and `closing`."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.loaded: Loaded | None = None
        self.ready: asyncio.Future[Loaded] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.users = self.loads = 0
        self.used = 0  # a number that grows whenever the last user of one leaves

    @property
    def idle(self) -> bool:
        return self.loaded is not None and not self.users

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Registry:
    """Loads a model when the first request asks for it, and lets it go when nobody has for `idle` seconds.

    `max_loaded`: so many are loaded at most; for another one those go that nobody uses, the one that was used
    longest ago first. Where all are in use, one more is loaded all the same, until one is idle.

    Raises:
        DogeExportError: see `ModelNames`.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        aliases: Mapping[str, str] | None = None,
        idle: float | None = None,
        max_loaded: int | None = None,
    ) -> None:
        self.names = ModelNames([offer.name for offer in offers], aliases)
        self._idle, self._max_loaded = idle, max_loaded
        self._entries = {offer.name: _Entry(offer) for offer in offers}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = itertools.count(1)  # a clock may show the same time twice
        self._ended = False

    def put(self, name: str, loaded: Loaded) -> None:
        """Take a model that was loaded by whoever calls this, before the event loop runs."""
        entry = self._entries[name]
        entry.loaded, entry.loads = loaded, 1

    def watch(self) -> None:
        """Begin to count the seconds of models that were put here."""
        for entry in self._entries.values():
            if entry.idle:
                self._rest(entry)

    def states(self) -> dict[str, State]:
        """Each model's own name, and what there is of it."""
        return {
            name: State(entry.loaded.service if entry.loaded else None, entry.loads)
            for name, entry in self._entries.items()
        }

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[Loaded]:
        """The model of that own name, loaded if it is not; it stays within the block.

        Raises:
            NotLoaded: it cannot be loaded; the next one who asks tries it again.
            Busy: too many wait for it already.
            Ended: the server ends.
        """
        entry = self._entries[name]
        if self._ended:
            raise Ended
        if entry.loaded is None and entry.users >= _MAX_WAITING:
            raise Busy
        entry.users += 1
        entry.stop_timer()
        try:
            yield entry.loaded or await self._ready(entry)
        finally:
            entry.users -= 1
            if not entry.users:
                self._rest(entry)

    def cancel(self) -> None:
        """End every generation, and everybody's waiting for a model."""
        self._ended = True
        for entry in self._entries.values():
            if entry.loaded is not None:
                entry.loaded.service.cancel()
            if entry.ready is not None and not entry.ready.done():
                entry.ready.set_exception(Ended())

    async def close(self) -> None:
        """Let go of all, whoever uses them."""
        self.cancel()
        await self._finish()  # what is being loaded now is loaded then
        for entry in self._entries.values():
            if entry.loaded is not None:
                self._let_go(entry)
        await self._finish()

    async def _ready(self, entry: _Entry) -> Loaded:
        if entry.ready is None:
            entry.ready = asyncio.get_running_loop().create_future()
            self._begin(self._load(entry, entry.ready))
        return await asyncio.shield(entry.ready)  # one who leaves does not end it for the others

    async def _load(self, entry: _Entry, ready: "asyncio.Future[Loaded]") -> None:
        for each in self._too_many():
            self._let_go(each)
        closing = [each.closing for each in self._entries.values() if each.closing is not None]
        if closing:  # their memory is what this one may need
            await asyncio.wait(closing)
        if self._ended:
            return
        try:
            loaded = await asyncio.to_thread(_loaded, entry.offer)
        except NotLoaded as error:
            entry.ready = None
            if not ready.done():
                ready.set_exception(error)
            return
        entry.ready, entry.loaded = None, loaded
        entry.loads += 1
        if not ready.done():
            ready.set_result(loaded)
        if not entry.users:
            self._rest(entry)

    def _too_many(self) -> list[_Entry]:
        """Those that have to go for `max_loaded`, as far as nobody uses them."""
        if self._max_loaded is None:
            return []
        entries = self._entries.values()
        here = [each for each in entries if each.loaded is not None or each.ready is not None]
        idle = sorted((each for each in here if each.idle), key=lambda each: each.used)
        return idle[: max(0, len(here) - self._max_loaded)]

    def _rest(self, entry: _Entry) -> None:
        """Nobody uses it from now on: see who is to go, now or later."""
        entry.used = next(self._turns)
        for each in self._too_many():
            self._let_go(each)
        if entry.idle and self._idle is not None:
            entry.stop_timer()
            entry.timer = asyncio.get_running_loop().call_later(self._idle, self._let_go, entry)

    def _let_go(self, entry: _Entry) -> None:
        entry.stop_timer()
        only = [entry.loaded]  # the one reference, which the thread takes out
        entry.loaded = None
        entry.closing = self._begin(self._close(entry, only))

    async def _close(self, entry: _Entry, only: list[Loaded | None]) -> None:
        try:
            await asyncio.to_thread(_freed, only)
        finally:
            entry.closing = None
        _log.info("%s is let go.", entry.offer.name)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no task
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finish(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks))


def _loaded(offer: Offer) -> Loaded:
    """Load it; whatever goes wrong is one sentence for clients, who need not know the server's folders."""
    try:
        loaded = offer.load()
    except (DogeExportError, OSError) as error:
        _log.error("%s cannot be loaded: %s", offer.name, error)
    except Exception:
        _log.exception("%s cannot be loaded, by a bug", offer.name)
    else:
        _log.info("%s is loaded (%s).", offer.name, loaded.about)
        return loaded
    raise NotLoaded(
        f"The model {shown(offer.name)} cannot be loaded; the server's log says why.",
        "The next request tries it again.",
    )


def _freed(only: list[Loaded | None]) -> None:
    loaded = only.pop()
    assert loaded is not None
    loaded.service.close()
    del loaded
    release_memory()
