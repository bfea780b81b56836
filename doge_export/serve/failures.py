"""What went wrong, as a status and a body: for each kind of error, the response to it."""

__all__ = ["ENDING", "HANDLERS", "INTERNAL", "described"]

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.serve.bodies import TooManyBodies
from doge_export.serve.errors import FieldError
from doge_export.serve.registry import NotLoaded
from doge_export.serve.service import Busy, Ended
from doge_export.serve.shapes import error_response, failure

Handler = Callable[[Request, Exception], Awaitable[Response]]

ENDING = "The server is ending."
INTERNAL = "Internal error; the server's log has it."
_CLIENT_LEFT = 499  # nobody reads it


def described(error: Exception) -> dict[str, Any] | None:
    """The body for an error that ends a stream which has begun; None: it is a bug, and INTERNAL describes
    it."""
    if isinstance(error, DogeExportError):
        kind = "server_error" if isinstance(error, NoNumbersError) else "invalid_request_error"
        return failure(error, kind)
    return failure(ENDING, "server_error") if isinstance(error, Ended) else None


async def _wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, DogeExportError)
    return error_response(request.scope, error.status if isinstance(error, FieldError) else 400, error)


async def _no_numbers(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 500, str(error))


async def _not_loaded(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 503, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    sentence = "Too many requests wait already. Try again in a moment."
    return error_response(request.scope, 503, sentence, {"Retry-After": "1"})


async def _ended(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 503, ENDING)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = error.detail
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        sentence = f"{request.method} is no method of {request.url.path}; it has {allowed}."
    elif error.status_code == 404 and "path_params" not in request.scope:  # no route, as against no response
        sentence = f"There is no route {request.url.path}; /openapi.json lists them."
    return error_response(request.scope, error.status_code, sentence, error.headers)


#: Kind of error -> what responds to it. A bug is not among them: see `bugs.py`.
HANDLERS: Mapping[Any, Handler] = {
    DogeExportError: _wrong,
    NoNumbersError: _no_numbers,
    NotLoaded: _not_loaded,
    Busy: _busy,
    TooManyBodies: _busy,
    Ended: _ended,
    ClientDisconnect: _left,
    HTTPException: _refused,
}
