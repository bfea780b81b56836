"""What every route is given: the models, and the means that the routes share."""

__all__ = ["Holding", "Model", "Served"]

import contextlib
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from doge_export.core.errors import DogeExportError
from doge_export.serve.bodies import Bodies
from doge_export.serve.contracts import Service
from doge_export.serve.limits import Limits
from doge_export.serve.meters import Meters, ModelMeters
from doge_export.serve.registry import Registry
from doge_export.serve.requests import RequestReader
from doge_export.serve.responses_api.store import ResponseStore

_HELD = "doge_export.held"


@dataclass(frozen=True)
class Model:
    """A loaded model: what generates, what reads its requests, and what counts them."""

    service: Service
    reader: RequestReader
    meters: ModelMeters


@dataclass(frozen=True)
class Served:
    """Models, served. `created`: when, in seconds since 1970. `responses`: those of /v1/responses."""

    registry: Registry
    limits: Limits
    bodies: Bodies
    meters: Meters
    created: int
    responses: ResponseStore = field(default_factory=ResponseStore)

    async def model(self, request: Request, body: Any) -> Model:
        """The model that the decoded body of the request names, loaded; it stays until the response has been
        sent.

        Raises:
            DogeExportError: the body is no object.
            FieldError: there is no such model, or a name is needed.
            NotLoaded: it cannot be loaded.
            Busy: too many wait for it.
            Ended: the server ends.
        """
        if not isinstance(body, dict):
            raise DogeExportError("The body is not a JSON object.")
        own = self.registry.names.find(body.get("model"))
        held: contextlib.AsyncExitStack = request.scope[_HELD]
        loaded = await held.enter_async_context(self.registry.use(own))
        return Model(loaded.service, loaded.reader, self.meters.of(own))


class Holding:
    """Holds what a request uses until its response has been sent, which a stream's route does not live to
    see."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as held:
            await self._app({**scope, _HELD: held}, receive, send)
