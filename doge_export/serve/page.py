"""The page at `/`: its files, as they lie in `static`, each with the policy that a browser holds it to."""

__all__ = ["page_routes"]

from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FIRST = "page.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Whatever a model writes, the page runs nothing but its own files and asks nobody but this server; the
# last two directives have the browser refuse a script of ours that would take a text for HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # after an update no file of the one before stands beside the new ones
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[Route]:
    """Return `/` and a route for every file that it needs; they are read here, once."""
    files = [each for each in (resources.files("doge_export.serve") / "static").iterdir() if each.is_file()]
    return [
        Route(
            "/" if file.name == _FIRST else f"/static/{file.name}",
            _serve(file.read_bytes(), _TYPES[PurePath(file.name).suffix]),
            include_in_schema=file.name == _FIRST,  # the others are nobody's but the page's
        )
        for file in sorted(files, key=lambda each: each.name)
    ]


def _serve(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return respond
