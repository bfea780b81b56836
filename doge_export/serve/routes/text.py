"""OpenAI's completions and chat, whole or streamed."""

__all__ = ["chat", "completions", "count"]

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export.serve.blame import named
from doge_export.serve.door import json_response, read_body
from doge_export.serve.failures import INTERNAL, described
from doge_export.serve.requests import TextRequest
from doge_export.serve.responses import CompletionResponse
from doge_export.serve.served import Model, Served
from doge_export.serve.shapes import failure
from doge_export.serve.streams import EventStream, Opened, leaving, sent

_log = logging.getLogger(__name__)


async def completions(request: Request, served: Served) -> Response:
    """POST /v1/completions."""
    return await _respond(request, served, chat=False)


async def chat(request: Request, served: Served) -> Response:
    """POST /v1/chat/completions."""
    return await _respond(request, served, chat=True)


async def count(request: Request, served: Served) -> Response:
    """POST /v1/chat/completions/input_tokens: how many tokens the prompt of a chat has."""
    wanted, _, _ = await read_body(request, served, lambda model: lambda body: model.reader.read(body, True))
    return json_response({"object": "response.input_tokens", "input_tokens": wanted.prompt_tokens})


async def _respond(request: Request, served: Served, chat: bool) -> Response:
    async with served.bodies.json(request) as body:
        arrived = time.perf_counter()
        model = await served.model(request, body)
        # In a thread: a long text takes its time to tokenize.
        wanted = await asyncio.to_thread(model.reader.read, body, chat)
    del body
    return await _generate(request, wanted, served, model, arrived)


async def _generate(
    request: Request, wanted: TextRequest, served: Served, model: Model, arrived: float
) -> Response:
    task = model.service.start(wanted)
    events = named(wanted, model.meters.watched(wanted, arrived, task.events()))
    response = CompletionResponse(wanted, model.reader.name)
    async with leaving(request, task):
        if wanted.stream:
            opened = await Opened.of(events, served.limits.first_seconds)
            chunks = _chunks(response, opened)
            return EventStream(
                chunks, opened, served.limits.ping_seconds, left=task.cancel, pinged=model.meters.pinged
            )
        async with contextlib.aclosing(events):
            async for batch in events:
                response.add(batch)
    return JSONResponse(response.whole())


async def _chunks(response: CompletionResponse, events: Opened) -> AsyncGenerator[str]:
    """Yield server-sent events, an error as one of them."""
    try:
        async for batch in events:
            for chunk in response.add(batch):
                yield sent(chunk)
        for chunk in response.last():
            yield sent(chunk)
    except Exception as error:
        body = described(error)
        if body is None:
            _log.exception("A stream failed by a bug")
        yield sent(body or failure(INTERNAL, "server_error"))
    yield "data: [DONE]\n\n"
