"""Server-sent events: the status when it is known, comments while there is nothing, an end when nobody
reads."""

__all__ = ["EventStream", "Opened", "leaving", "sent"]

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from doge_export.runtime import Event
from doge_export.serve.contracts import Task
from doge_export.serve.service import Ended


def sent(data: dict[str, Any], name: str | None = None) -> str:
    """One event as it is sent; some APIs give each a `name`."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class Opened:
    """Events whose first one has been waited for, for a moment: what is wrong with a request shows by then,
    while the status can still say so."""

    def __init__(self, events: AsyncGenerator[list[Event]]) -> None:
        self._events = events
        self._first: asyncio.Future[list[Event]] | None = None

    @classmethod
    async def of(cls, events: AsyncGenerator[list[Event]], seconds: float) -> "Opened":
        """Wait for the first event, up to `seconds`.

        Raises:
            Exception: whatever `events` raise by then.
        """
        opened = cls(events)
        opened._first = first = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait({first}, timeout=seconds)
            if first.done():
                first.result()
        except BaseException:
            await opened.aclose()
            raise
        return opened

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        if self._first is None:
            return await anext(self._events)
        first, self._first = self._first, None
        return await first

    async def aclose(self) -> None:
        """End the generation, whether or not it was listened to."""
        if self._first is not None:
            self._first.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._first
        await self._events.aclose()


@contextlib.asynccontextmanager
async def leaving(request: Request, task: Task) -> AsyncGenerator[None]:
    """Cancel the task if the client goes away within the block.

    Raises:
        ClientDisconnect: it went.
    """
    gone = False

    async def listen() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    listening = asyncio.ensure_future(listen())
    try:
        yield
    except Ended:
        if gone:
            raise ClientDisconnect from None
        raise
    finally:
        listening.cancel()


class EventStream(Response):
    """A response of events, which are texts ready to send.

    The head goes at once, and a comment wherever nothing came for `ping_seconds`. When the client leaves,
    `left` is called, and nothing more is sent. `source` is what `events` are made of, and ends with them.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str],
        source: Opened,
        ping_seconds: float,
        left: Callable[[], None],
        pinged: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._source, self._seconds = events, source, ping_seconds
        self._left, self._pinged = left, pinged
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        listening, pinging = asyncio.create_task(self._listen(receive)), asyncio.create_task(self._ping(send))
        try:
            self._last = asyncio.get_running_loop().time()
            await send(head)
            async with contextlib.aclosing(self._events):
                async for event in self._events:
                    await self._send(send, event)
            pinging.cancel()  # nothing may come after the end
            await send({"type": "http.response.body", "body": b""})
        finally:
            listening.cancel()
            pinging.cancel()
            await self._source.aclose()

    async def _send(self, send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        self._last = asyncio.get_running_loop().time()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left()

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._seconds)
        while True:
            if (left := self._last + self._seconds - loop.time()) > 0:
                await asyncio.sleep(left)
                continue
            await self._send(send, ": ping\n\n")
            self._pinged()
