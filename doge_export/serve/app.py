"""The application: the table of routes, what responds to errors, and what stands before them all."""

__all__ = ["build_app"]

import time
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doge_export import __version__
from doge_export.serve.access import Keys, cors
from doge_export.serve.bodies import Bodies
from doge_export.serve.bugs import Bugs
from doge_export.serve.failures import HANDLERS
from doge_export.serve.limits import Limits
from doge_export.serve.meters import Meters
from doge_export.serve.page import page_routes
from doge_export.serve.paths import Paths
from doge_export.serve.registry import Registry
from doge_export.serve.routes import ROUTES, Row
from doge_export.serve.served import Holding, Served


def build_app(
    registry: Registry,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    credentials: bool = False,
) -> Starlette:
    """The ASGI application for the models of a registry. `keys`: one of them is needed, if there are any.
    `origins`: of pages that may ask it, with cookies where `credentials`."""
    limits = limits or Limits()
    meters = Meters(__version__, registry.states)
    served = Served(registry, limits, Bodies(limits), meters, int(time.time()))
    paths = dict.fromkeys(row.path for row in ROUTES)
    routes = [_route([row for row in ROUTES if row.path == path], served) for path in paths]
    routes += page_routes()
    before = [Middleware(Paths, routes=routes, meters=meters), Middleware(Bugs)]
    if origins:
        before.append(cors(origins, credentials))
    if keys:
        before.append(Middleware(Keys, keys=keys))
    before.append(Middleware(Holding))
    app = Starlette(routes=routes, middleware=before, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # `paths.py` knows what is meant
    return app


def _route(rows: Sequence[Row], served: Served) -> Route:
    """The methods of one path as one route, which knows them all where none is meant."""
    methods = {row.method: row.respond for row in rows}

    async def respond(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method](request, served)

    return Route(rows[0].path, respond, methods=list(methods))
