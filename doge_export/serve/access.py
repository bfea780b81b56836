"""Who may use the server: those with a key, and pages of the origins that are allowed."""

__all__ = ["Keys", "check_keys", "check_origins", "cors"]

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from doge_export.core.errors import DogeExportError
from doge_export.serve.shapes import error_response

_OPEN = frozenset({"/", "/health"})
_OPEN_FOLDER = "/static/"  # the page's files
_ANTHROPIC = "/v1/messages"  # with clients that read Anthropic's errors
_LOCAL = "localhost"  # stands for pages of this machine, whatever their port
_LOCAL_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
_REFUSED = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`."


class Keys:
    """Refuses requests without one of the keys. Whether the server is there, and its page, everyone may
    see."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]) or self._fits(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": "Bearer"}
        response = error_response(scope, 401, _REFUSED, headers, "invalid_api_key")
        await response(scope, receive, send)

    def _fits(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip()] if scheme.lower() == "bearer" else []
        given.append(headers.get("x-api-key", ""))
        # Every pair is compared: the time that it takes must not say which keys come near.
        fits = [hmac.compare_digest(each.encode(), key) for each in given for key in self._keys]
        return any(fits)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def check_keys(keys: Sequence[str]) -> None:
    """See that a header can hold each.

    Raises:
        DogeExportError: one is empty, or has a space or a character that is not ASCII.
    """
    if not all(key and all("!" <= character <= "~" for character in key) for key in keys):
        raise DogeExportError(
            "An API key is empty, or has a space or a character that is not ASCII.",
            "Make one, for example by `openssl rand -hex 32`.",
        )


def check_origins(origins: Sequence[str]) -> None:
    """See that a browser can send each.

    Raises:
        DogeExportError: one is neither *, localhost, nor a scheme and a host.
    """
    for origin in origins:
        parts = urlsplit(origin)
        if origin not in ("*", _LOCAL) and (not parts.scheme or f"{parts.scheme}://{parts.netloc}" != origin):
            raise DogeExportError(
                f"{origin!r} is no origin.",
                "One is https://example.org or http://localhost:3000; localhost is all of this machine, "
                "* is all.",
            )


class _Cors(CORSMiddleware):
    """Starlette's, which answers a question about a page that may not ask with 400; such a page reads in the
    headers that it may not, and whoever counts errors need not hear of it."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.status_code = 200
        return response


def cors(origins: Sequence[str], credentials: bool = False) -> Middleware:
    """What lets pages of `origins` ask the server, with cookies where `credentials`."""
    return Middleware(
        _Cors,
        allow_origins=[origin for origin in origins if origin != _LOCAL],
        allow_origin_regex=_LOCAL_PAGES if _LOCAL in origins else None,
        allow_credentials=credentials,
        allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
        allow_headers=["*"],
        max_age=3600,
    )
