"""What is served: the model's name and the description of the routes."""

__all__ = ["described", "model", "models"]

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export import __version__
from doge_export.serve import responses
from doge_export.serve.openapi import description
from doge_export.serve.served import Served


async def models(request: Request, served: Served) -> Response:
    """GET /v1/models: a list of one."""
    return JSONResponse(responses.models(served.reader.name, served.created))


async def model(request: Request, served: Served) -> Response:
    """GET /v1/models/{id}: the one, if it has that name."""
    served.reader.check_model(request.path_params["id"])
    (only,) = responses.models(served.reader.name, served.created)["data"]
    return JSONResponse(only)


async def described(request: Request, served: Served) -> Response:
    """GET /openapi.json."""
    return JSONResponse(description(__version__))
