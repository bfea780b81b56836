"""The routes of Anthropic's Messages."""

__all__ = ["count", "create"]

import functools
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.serve.bodies import TooManyBodies
from doge_export.serve.door import answered, json_response, read_body
from doge_export.serve.errors import FieldError
from doge_export.serve.failures import ENDING
from doge_export.serve.messages_api.answer import MessageAnswer, failure
from doge_export.serve.messages_api.reader import MessagesReader
from doge_export.serve.registry import NotLoaded
from doge_export.serve.served import Served
from doge_export.serve.service import Busy, Ended

Respond = Callable[[Request, Served], Awaitable[Response]]

_OVERLOADED = 529  # Anthropic's own
_KINDS = {404: "not_found_error", 413: "request_too_large"}


def _shaped(respond: Respond) -> Respond:
    """The same, with errors in Anthropic's shape."""

    @functools.wraps(respond)
    async def shaped(request: Request, served: Served) -> Response:
        try:
            return await respond(request, served)
        except NoNumbersError as error:
            return json_response(failure(str(error), "api_error"), 500)
        except NotLoaded as error:
            return json_response(failure(str(error), "api_error"), 503)
        except DogeExportError as error:
            status = error.status if isinstance(error, FieldError) else 400
            return json_response(failure(str(error), _KINDS.get(status, "invalid_request_error")), status)
        except (Busy, TooManyBodies):
            body = failure("Too many requests wait already. Try again in a moment.", "overloaded_error")
            return json_response(body, _OVERLOADED, **{"Retry-After": "1"})
        except Ended:
            return json_response(failure(ENDING, "overloaded_error"), _OVERLOADED)
        except HTTPException as error:
            kind = _KINDS.get(error.status_code, "invalid_request_error")
            return json_response(failure(error.detail, kind), error.status_code, **dict(error.headers or {}))

    return shaped


@_shaped
async def create(request: Request, served: Served) -> Response:
    """POST /v1/messages."""
    wanted, model, arrived = await read_body(
        request, served, lambda model: MessagesReader(model.reader, model.service.tokenizer).read
    )
    answer = MessageAnswer(wanted, model.reader.name, model.service.tokenizer)
    return await answered(request, served, model, answer, arrived)


@_shaped
async def count(request: Request, served: Served) -> Response:
    """POST /v1/messages/count_tokens."""
    tokens, _, _ = await read_body(
        request,
        served,
        lambda model: MessagesReader(model.reader, model.service.tokenizer, counting=True).read,
    )
    return json_response({"input_tokens": tokens})
