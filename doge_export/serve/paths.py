"""One route under each of its names: with /v1 and without it, with a slash at its end and without."""

__all__ = ["Paths"]

from collections.abc import Sequence

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from doge_export.serve.meters import Meters

_VERSION = "/v1"
_NONE = "other"  # what clients make up must not become labels


class Paths:
    """Finds the route that a path means, writes the path as the route has it, and counts the response."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route], meters: Meters) -> None:
        self._app, self._routes, self._meters = app, routes, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, route = self._meant(scope)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meters.responded(route, message["status"])
            await send(message)

        await self._app({**scope, "path": path}, receive, counted)

    def _meant(self, scope: Scope) -> tuple[str, str]:
        path = scope["path"]
        plain = path.rstrip("/") or "/"
        other = _VERSION + plain
        if plain == _VERSION or plain.startswith(f"{_VERSION}/"):
            other = plain.removeprefix(_VERSION) or "/"
            if other.startswith(f"{_VERSION}/"):
                return path, _NONE
        for each in (plain, other):
            for route in self._routes:
                if route.matches({**scope, "path": each})[0] != Match.NONE:
                    return each, route.path_format
        return path, _NONE
