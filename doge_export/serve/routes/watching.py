"""How the server does: whether it is there, its counters, and its slots."""

__all__ = ["health", "metrics", "slots"]

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export.serve.contracts import snapshot
from doge_export.serve.meters import CONTENT_TYPE
from doge_export.serve.served import Served


async def health(request: Request, served: Served) -> Response:
    """GET /health: it answers while everything is busy, since nothing that takes time runs in its thread."""
    states = served.registry.states().values()
    said: dict[str, Any] = {"status": "ok"}
    if len(states) > 1:
        said |= {"models": len(states), "loaded": sum(state.service is not None for state in states)}
    return JSONResponse(said)


async def metrics(request: Request, served: Served) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(served.meters.text(), headers={"Content-Type": CONTENT_TYPE})


async def slots(request: Request, served: Served) -> Response:
    """GET /slots: what each slot does, of the loaded models, or of the one in the query's `model`."""
    states = served.registry.states()
    named = request.query_params.get("model")
    names = [served.registry.names.find(named)] if named else list(states)
    found: list[Mapping[str, Any]] = []
    for name in names:
        if (service := states[name].service) is None:
            continue
        if (now := snapshot(service)) is None:
            raise HTTPException(501, "The server does not know its slots.")
        whose = {"model": name} if len(states) > 1 else {}
        found += [{**slot, **whose} for slot in now["slots"]]
    return JSONResponse(found)
