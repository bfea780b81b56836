"""What is served: the models' names and the description of the routes."""

__all__ = ["described", "model", "models"]

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export import __version__
from doge_export.serve.openapi import description
from doge_export.serve.responses import model_card
from doge_export.serve.served import Served


async def models(request: Request, served: Served) -> Response:
    """GET /v1/models: each by each of its names."""
    return JSONResponse(
        {"object": "list", "data": [_card(name, served) for name in served.registry.names.all()]}
    )


async def model(request: Request, served: Served) -> Response:
    """GET /v1/models/{id}: the one of that name."""
    name = request.path_params["id"]
    served.registry.names.find(name)
    return JSONResponse(_card(name, served))


async def described(request: Request, served: Served) -> Response:
    """GET /openapi.json."""
    return JSONResponse(description(__version__))


def _card(name: str, served: Served) -> dict[str, Any]:
    own = served.registry.names.find(name)
    return model_card(name, own, served.created, served.registry.states()[own].service is not None)
