"""The body of an error, in the shape of the API that was asked."""

__all__ = ["error_response", "failure", "message_failure"]

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from doge_export.core.errors import DogeExportError
from doge_export.serve.errors import FieldError

_SERVER = 500  # and above: not the client's fault
_BUSY, _OVERLOADED = 503, 529  # the latter is Anthropic's own
#: Status -> Anthropic's word for it.
_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    _OVERLOADED: "overloaded_error",
}


def failure(
    what: str | DogeExportError, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """OpenAI's body of an error, with the field of the request that it is in, where it is in one."""
    param, code = (what.field, what.code) if isinstance(what, FieldError) else (None, code)
    return {"error": {"message": _sentence(what), "type": kind, "param": param, "code": code}}


def message_failure(what: str | DogeExportError, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Anthropic's body of an error."""
    return {"type": "error", "error": {"type": kind, "message": _sentence(what)}}


def error_response(
    scope: Scope,
    status: int,
    what: str | DogeExportError,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
) -> JSONResponse:
    """The response to a request that was refused, or that failed."""
    if not _of_messages(scope["path"]):
        kind = "server_error" if status >= _SERVER else "invalid_request_error"
        return JSONResponse(failure(what, kind, code), status, headers)
    status = _OVERLOADED if status == _BUSY else status
    other = "api_error" if status >= _SERVER else "invalid_request_error"
    return JSONResponse(message_failure(what, _KINDS.get(status, other)), status, headers)


def _of_messages(path: str) -> bool:
    return f"{path.removeprefix('/v1')}/".startswith("/messages/")


def _sentence(what: str | DogeExportError) -> str:
    """Half a character, which a request may hold, is shown by its number."""
    return str(what).encode("utf-8", "backslashreplace").decode("utf-8")
