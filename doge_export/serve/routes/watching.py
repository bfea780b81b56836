"""How the server does: whether it is there, its counters, and its slots."""

__all__ = ["health", "metrics", "slots"]

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export.serve.meters import CONTENT_TYPE
from doge_export.serve.served import Served, snapshot


async def health(request: Request, served: Served) -> Response:
    """GET /health: it answers while everything is busy, since nothing that takes time runs in its thread."""
    return JSONResponse({"status": "ok"})


async def metrics(request: Request, served: Served) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(served.meters.text(), headers={"Content-Type": CONTENT_TYPE})


async def slots(request: Request, served: Served) -> Response:
    """GET /slots: what each slot does."""
    now = snapshot(served.service)
    if now is None:
        raise HTTPException(501, "The server does not know its slots.")
    return JSONResponse(list(now["slots"]))
