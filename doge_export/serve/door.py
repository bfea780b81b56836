"""The way of a request through an API of its own: read, started, and answered whole or as named events."""

__all__ = ["Answer", "Named", "answered", "blame", "json_response", "read_body"]

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.runtime import Event
from doge_export.serve.blame import named
from doge_export.serve.failures import ENDING, INTERNAL
from doge_export.serve.requests import TextRequest
from doge_export.serve.served import Model, Served
from doge_export.serve.service import Ended
from doge_export.serve.streams import EventStream, Opened, leaving

_log = logging.getLogger(__name__)

#: An event's name, where it has one, and its data.
Named = tuple[str | None, dict[str, Any]]


class Answer(Protocol):
    """The answer to one request, built from its events."""

    @property
    def request(self) -> TextRequest: ...

    def begin(self) -> list[Named]:
        """Return what a stream sends before the first event."""

    def add(self, events: Sequence[Event]) -> list[Named]:
        """Take the events in; returns what a stream sends for them."""

    def last(self) -> list[Named]:
        """Return what a stream sends after the last of them."""

    def whole(self) -> Any:
        """Return everything at once, after the last of them."""

    def failed(self, error: Exception) -> Named:
        """Return what a stream sends in the place of the rest."""


async def read_body(
    request: Request, served: Served, reader: Callable[[Model], Callable[[Any], Any]]
) -> tuple[Any, Model, float]:
    """What the `reader` of the model makes of the request's body, the model, and when the body was there.

    Raises:
        HTTPException: see `Bodies`.
        TooManyBodies: there is no place for it.
        DogeExportError: it is not JSON, or whatever the reader raises.
        Exception: see `Served.model`.
    """
    async with served.bodies.json(request) as body:
        arrived = time.perf_counter()
        model = await served.model(request, body)
        # In a thread: a long text takes its time to tokenize.
        return await asyncio.to_thread(reader(model), body), model, arrived


async def answered(
    request: Request, served: Served, model: Model, answer: Answer, arrived: float
) -> Response:
    """The response to a request whose `answer` has yet to be made.

    Raises:
        DogeExportError: what was asked for cannot be done.
        Busy: too many requests wait.
        Ended: the server ends.
        ClientDisconnect: the client went away.
    """
    task = model.service.start(answer.request)
    events = named(answer.request, model.meters.watched(answer.request, arrived, task.events()))
    async with leaving(request, task):
        if answer.request.stream:
            opened = await Opened.of(events, served.limits.first_seconds)
            sent = _sent(answer, opened)
            ping = served.limits.ping_seconds
            return EventStream(sent, opened, ping, left=task.cancel, pinged=model.meters.pinged)
        async with contextlib.aclosing(events):
            async for batch in events:
                answer.add(batch)
    return json_response(answer.whole())


def json_response(data: Any, status: int = 200, **headers: str) -> Response:
    """Data as JSON."""
    return Response(_text(data), status, headers, "application/json")


def blame(error: Exception) -> tuple[str, bool]:
    """What a stream says of an error, and whether it is the server's own."""
    if isinstance(error, DogeExportError):
        return str(error), isinstance(error, NoNumbersError)
    if isinstance(error, Ended):
        return ENDING, True
    _log.error("A stream failed by a bug", exc_info=error)
    return INTERNAL, True


async def _sent(answer: Answer, events: Opened) -> AsyncGenerator[str]:
    """Yield server-sent events, an error as one of them."""
    try:
        for each in answer.begin():
            yield _event(each)
        async for batch in events:
            for each in answer.add(batch):
                yield _event(each)
        for each in answer.last():
            yield _event(each)
    except Exception as error:
        yield _event(answer.failed(error))


def _event(event: Named) -> str:
    name, data = event
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {_text(data)}\n\n"


def _text(data: Any) -> str:
    # A request may hold half a character, which is given back; JSON spells it as backslashreplace does.
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
