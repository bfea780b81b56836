"""The routes of Anthropic's Messages."""

__all__ = ["routes"]

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.serve.door import ENDING, Read, answered, json_response
from doge_export.serve.messages_api.answer import MessageAnswer, failure
from doge_export.serve.messages_api.reader import MessagesReader
from doge_export.serve.requests import RequestReader
from doge_export.serve.service import Busy, Ended, TextService

Respond = Callable[[Request], Awaitable[Response]]

_OVERLOADED = 529  # Anthropic's own
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_KINDS |= {413: "request_too_large", 429: "rate_limit_error"}


def routes(service: TextService, reader: RequestReader, read: Read) -> list[Route]:
    """The routes for one bundle."""
    ours = MessagesReader(reader, service.tokenizer)
    counter = MessagesReader(reader, service.tokenizer, counting=True)

    async def create(request: Request) -> Response:
        wanted = await read(request, ours, True)
        return await answered(request, service, MessageAnswer(wanted, reader.name, service.tokenizer))

    async def count(request: Request) -> Response:
        return json_response({"input_tokens": await read(request, counter, True)})

    return [
        Route("/v1/messages", _shaped(create), methods=["POST"]),
        Route("/v1/messages/count_tokens", _shaped(count), methods=["POST"]),
    ]


def _shaped(respond: Respond) -> Respond:
    """The same, with errors in Anthropic's shape."""

    async def shaped(request: Request) -> Response:
        try:
            return await respond(request)
        except NoNumbersError as error:
            return json_response(failure(str(error), "api_error"), 500)
        except DogeExportError as error:
            return json_response(failure(str(error)), 400)
        except Busy:
            body = failure("Too many requests wait already. Try again in a moment.", "overloaded_error")
            return json_response(body, _OVERLOADED, **{"Retry-After": "1"})
        except Ended:
            return json_response(failure(ENDING, "overloaded_error"), _OVERLOADED)
        except HTTPException as error:
            kind = _KINDS.get(error.status_code, "invalid_request_error")
            return json_response(failure(error.detail, kind), error.status_code, **dict(error.headers or {}))

    return shaped
