"""The routes: OpenAI's completions and chat, the model's name, their description, and whether the server is
there."""

__all__ = ["build_app"]

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from doge_export import __version__
from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.json_file import parse_json
from doge_export.runtime import Event
from doge_export.serve.openapi import description
from doge_export.serve.page import page_routes
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.responses import CompletionResponse, failure, models
from doge_export.serve.service import Busy, Ended, GenerationTask, TextService

_LARGEST_BODY = 32 << 20  # bytes
_ENDING = "The server is ending."
_CLIENT_LEFT = 499  # nobody reads it


def build_app(service: TextService, reader: RequestReader) -> Starlette:
    """The ASGI application for one bundle."""
    started = int(time.time())

    def route(chat: bool) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            wanted = await _read(request, reader, chat)
            return await _generate(request, wanted, service, reader.name)

        return respond

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def listed(request: Request) -> Response:
        return JSONResponse(models(reader.name, started))

    async def described(request: Request) -> Response:
        return JSONResponse(description(__version__))

    return Starlette(
        routes=[
            *page_routes(),
            Route("/health", health),
            Route("/openapi.json", described),
            Route("/v1/models", listed),
            Route("/v1/completions", route(chat=False), methods=["POST"]),
            Route("/v1/chat/completions", route(chat=True), methods=["POST"]),
        ],
        exception_handlers={
            DogeExportError: _wrong,
            NoNumbersError: _no_numbers,
            Busy: _busy,
            Ended: _ended,
            ClientDisconnect: _left,
            HTTPException: _refused,
            Exception: _bug,
        },
    )


async def _read(request: Request, reader: RequestReader, chat: bool) -> TextRequest:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"The body is larger than {_LARGEST_BODY >> 20} MiB.")
    try:
        decoded = parse_json(bytes(body))
    except ValueError:
        raise DogeExportError("The body is not JSON.") from None
    model = decoded.get("model") if isinstance(decoded, dict) else None
    if model not in (None, "", reader.name):
        raise HTTPException(404, f"There is no model {model!r} here; {reader.name!r} is served.")
    return await asyncio.to_thread(reader.read, decoded, chat)  # a long text takes its time to tokenize


async def _generate(request: Request, wanted: TextRequest, service: TextService, name: str) -> Response:
    task = service.start(wanted)
    response, events = CompletionResponse(wanted, name), task.events()
    # What is wrong with a request shows before its first token, while the status can still say so.
    listening = asyncio.ensure_future(_until_gone(request, task))
    try:
        first = await anext(events)
        if wanted.stream:
            body = _stream(response, first, events)
            return StreamingResponse(
                body, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        response.add(first)
        async for batch in events:
            response.add(batch)
    finally:
        listening.cancel()
    return JSONResponse(response.whole())


async def _until_gone(request: Request, task: GenerationTask) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _stream(
    response: CompletionResponse, first: list[Event], events: AsyncGenerator[list[Event]]
) -> AsyncGenerator[str]:
    """Yield server-sent events. The generation ends with the iteration, however that ends."""
    try:
        for chunk in response.add(first):
            yield _sent(chunk)
        async for batch in events:
            for chunk in response.add(batch):
                yield _sent(chunk)
        for chunk in response.last():
            yield _sent(chunk)
    except DogeExportError as error:
        yield _sent(_failed(error))
    except Ended:
        yield _sent(failure(_ENDING, "server_error"))
    finally:
        await events.aclose()
    yield "data: [DONE]\n\n"


def _sent(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _failed(error: DogeExportError) -> dict[str, Any]:
    kind = "server_error" if isinstance(error, NoNumbersError) else "invalid_request_error"
    return failure(str(error), kind)


async def _wrong(request: Request, error: Exception) -> Response:
    return JSONResponse(failure(str(error)), 400)


async def _no_numbers(request: Request, error: Exception) -> Response:
    return JSONResponse(failure(str(error), "server_error"), 500)


async def _busy(request: Request, error: Exception) -> Response:
    body = failure("Too many requests wait already. Try again in a moment.", "server_error")
    return JSONResponse(body, 503, headers={"Retry-After": "1"})


async def _ended(request: Request, error: Exception) -> Response:
    return JSONResponse(failure(_ENDING, "server_error"), 503)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(failure(error.detail), error.status_code, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse(failure("Internal error; the server's log has it.", "server_error"), 500)
