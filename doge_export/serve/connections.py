"""Connections, as uvicorn has them, but none of them for ever: what a client does not send or read in time
ends it, and what is no HTTP gets the body that every other error has."""

__all__ = ["connection_class", "http_config", "quietly"]

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from doge_export.serve.limits import Limits
from doge_export.serve.shapes import failure

_log = logging.getLogger(__name__)

_BACKLOG = 128
_RESERVED = 64  # descriptors for everything else: the model's files, the log
_FEWEST = 16
_LINGERING = 2  # seconds
_SAID_AGAIN = 60  # seconds


class _Connection(H11Protocol):
    """One connection. At each moment it waits for one thing of its client at most, and has a timer for it."""

    limits = Limits()
    most = sys.maxsize
    cycle: Any  # None until the first request

    _phase: tuple[str, int] = ("", 0)
    _timer: asyncio.TimerHandle | None = None
    _ended = False
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._end(503, "Too many connections are open already. Try again in a moment.")
            self.transport.close()  # they are what there are too many of
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._writing):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with bytes that are no HTTP, unless a response to them has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._end(status, f"This is no HTTP request: {error or msg}.")

    def _end(self, status: int, sentence: str) -> None:
        body = json.dumps(failure(sentence)).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # whoever waits for the rest of its body need not wait any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # What still comes is thrown away for a moment: closing a connection with bytes unread takes back what
        # was written to it.
        self._ended = True
        self.transport.write_eof()

    def _watch(self) -> None:
        """Start the timer of what the client has to do next, if it is not the one that runs."""
        phase, seconds = self._waits()
        if phase == self._phase:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._phase, self._timer = phase, None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._too_late)

    def _waits(self) -> tuple[tuple[str, int], float | None]:
        """What the connection waits for, with a number that tells one time from the next, and for how
        long."""
        limits, number = self.limits, 0 if self.cycle is None else id(self.cycle)
        if self._ended:
            return ("end", number), _LINGERING
        if self.transport.is_closing():
            return ("close", number), limits.write_seconds  # for what is written to be read
        if self.cycle is not None and not self.cycle.response_complete:
            return ("response", number), None  # `bodies.py` waits for the body
        if self.conn.their_state is h11.SEND_BODY:
            return ("rest", number), limits.body_seconds  # of a body that nobody needs
        if self.conn.trailing_data[0] or self.cycle is None:
            return ("head", number), limits.header_seconds
        return ("next", number), limits.keep_alive_seconds

    def _too_late(self) -> None:
        self.transport.abort()


def connection_class(limits: Limits, most: int | None = None) -> type[asyncio.Protocol]:
    """The protocol of connections within `limits`, `most` of them at once: unless it is said, so many that
    some descriptors remain."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - _RESERVED, _FEWEST)
    return type("Connection", (_Connection,), {"limits": limits, "most": most or allowed})


def http_config(app: ASGIApp, limits: Limits | None = None, most: int | None = None) -> uvicorn.Config:
    """How uvicorn is to serve `app`."""
    limits = limits or Limits()
    return uvicorn.Config(
        app,
        http=connection_class(limits, most),
        ws="none",
        log_config=None,
        log_level=logging.ERROR,  # its warnings are of bytes that clients sent, one line for each
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=int(limits.keep_alive_seconds) + 1,  # ours comes first
    )


def quietly() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """A handler of the event loop's errors that says once a minute that no descriptor is left, which asyncio
    would do more than a hundred times a second, with a traceback each."""
    said = -float(_SAID_AGAIN)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if "accept" not in context.get("message", "") or not isinstance(context.get("exception"), OSError):
            loop.default_exception_handler(context)
        elif time.monotonic() - said >= _SAID_AGAIN:
            said = time.monotonic()
            _log.warning("New connections wait: %s.", context["exception"].strerror)

    return handle
