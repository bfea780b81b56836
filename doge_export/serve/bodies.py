"""The bodies of requests: read within limits of size, time and number, and decoded."""

__all__ = ["Bodies", "TooManyBodies"]

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.serve.limits import Limits


class TooManyBodies(Exception):
    """As many are being read as may be."""


class Bodies:
    """Reads bodies, so many at once.

    Large ones have few places of their own: they take memory and a tokenizer's time, and clients that send
    them slowly must not stand in the way of the small ones.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._small = limits.small_bodies
        self._large = asyncio.Semaphore(limits.large_bodies)

    @contextlib.asynccontextmanager
    async def json(self, request: Request) -> AsyncGenerator[Any]:
        """The decoded body. Its place is taken until the block ends, so what is done with a large one belongs
        into it.

        Raises:
            HTTPException: it is too large (413) or comes too slowly (408).
            TooManyBodies: there is no place for it.
            DogeExportError: it is not JSON.
            starlette.requests.ClientDisconnect: the client went away.
        """
        if (announced := int(request.headers.get("content-length", 0))) > self._limits.body_bytes:
            raise self._too_large()
        if not self._small:
            raise TooManyBodies
        self._small -= 1
        try:
            async with contextlib.AsyncExitStack() as place:
                if announced > self._limits.small_bytes:
                    await self._enlarge(place)
                yield _decoded(await self._read(request, announced, place))
        finally:
            self._small += 1

    async def _read(self, request: Request, announced: int, place: contextlib.AsyncExitStack) -> bytes:
        limits = self._limits
        large = announced > limits.small_bytes
        body, loop = bytearray(), asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(limits.body_seconds) as timeout:
                async for part in request.stream():
                    body += part
                    if len(body) > limits.body_bytes:
                        raise self._too_large()
                    if not large and len(body) > limits.small_bytes:  # one that did not announce its size
                        waited = loop.time()
                        timeout.reschedule(None)
                        await self._enlarge(place)
                        large, started = True, started + loop.time() - waited
                    earned = limits.body_seconds + len(body) / limits.body_bytes_a_second
                    timeout.reschedule(started + earned)
        except TimeoutError:
            sentence = f"The body did not come within {limits.body_seconds:g} seconds."
            raise HTTPException(408, sentence, headers={"Connection": "close"}) from None
        return bytes(body)

    async def _enlarge(self, place: contextlib.AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await place.enter_async_context(self._large)
        except TimeoutError:
            raise TooManyBodies from None

    def _too_large(self) -> HTTPException:
        most = self._limits.body_bytes
        return HTTPException(413, f"The body is larger than {most >> 20} MiB." if most >> 20 else
                             f"The body is larger than {most} bytes.")  # fmt: skip


def _decoded(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        raise DogeExportError("The body is not JSON.") from None
