"""A bug of ours: one traceback in the log, and a response after which the connection goes on."""

__all__ = ["Bugs"]

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from doge_export.serve.failures import INTERNAL
from doge_export.serve.shapes import error_response

_log = logging.getLogger(__name__)


class Bugs:
    """Responds with 500 to what nothing else caught.

    Starlette's own handler raises the error again after its response, at which uvicorn closes the connection
    without having said so: the next request of a client that pools its connections would fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if begun:
                raise  # the response is cut off, and uvicorn's log has it
            _log.exception("A request failed by a bug")
            await error_response(scope, 500, INTERNAL)(scope, receive, send)
