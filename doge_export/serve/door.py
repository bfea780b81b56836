"""The way of a request through an API of its own: started, answered whole or as named events, and what is
wrong in that API's shape."""

__all__ = ["ENDING", "Answer", "Named", "Read", "answered", "json_response"]

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from doge_export.core.errors import DogeExportError
from doge_export.runtime import Event
from doge_export.serve.requests import TextRequest
from doge_export.serve.service import Ended, GenerationTask, TextService

#: An event's name, and its data.
Named = tuple[str, dict[str, Any]]
#: Reads a request's body, checks the model's name, and gives the rest to a reader, in a thread.
Read = Callable[[Request, Any, bool], Awaitable[Any]]

ENDING = "The server is ending."


class Answer(Protocol):
    """The answer to one request, built from its events."""

    @property
    def request(self) -> TextRequest: ...

    def add(self, events: Sequence[Event]) -> list[Named]:
        """Take the events in; returns what a stream sends for them."""

    def last(self) -> list[Named]:
        """Return what a stream sends after the last of them."""

    def whole(self) -> dict[str, Any]:
        """Return everything at once, after the last of them."""

    def failed(self, error: Exception) -> Named:
        """Return what a stream sends in the place of the rest."""


async def answered(request: Request, service: TextService, answer: Answer) -> Response:
    """The response to a request whose `answer` has yet to be made.

    Raises:
        DogeExportError: what was asked for cannot be done; it shows before the first token.
        Busy: too many requests wait.
        Ended: the client went away, or the server ends.
    """
    task = service.start(answer.request)
    events = task.events()
    listening = asyncio.ensure_future(_until_gone(request, task))
    try:
        first = await anext(events)
        if answer.request.stream:
            body = _stream(answer, first, events)
            return StreamingResponse(
                body, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        answer.add(first)
        async for batch in events:
            answer.add(batch)
    finally:
        listening.cancel()
    return json_response(answer.whole())


def json_response(data: Any, status: int = 200, **headers: str) -> Response:
    """Data as JSON."""
    return Response(_encoded(data), status, headers, "application/json")


def _encoded(data: Any) -> bytes:
    # A request may hold half a character, which is given back; JSON spells it as backslashreplace does.
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace")


async def _until_gone(request: Request, task: GenerationTask) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _stream(
    answer: Answer, first: list[Event], events: AsyncGenerator[list[Event]]
) -> AsyncGenerator[bytes]:
    """Yield server-sent events. The generation ends with the iteration, however that ends."""
    try:
        for event in answer.add(first):
            yield _sent(event)
        async for batch in events:
            for event in answer.add(batch):
                yield _sent(event)
        for event in answer.last():
            yield _sent(event)
    except (DogeExportError, Ended) as error:
        yield _sent(answer.failed(error))
    finally:
        await events.aclose()


def _sent(event: Named) -> bytes:
    name, data = event
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoded(data))
