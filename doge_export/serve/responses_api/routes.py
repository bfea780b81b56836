"""The routes of OpenAI's Responses."""

__all__ = ["routes"]

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doge_export.serve.door import Read, answered, json_response
from doge_export.serve.requests import RequestReader
from doge_export.serve.responses_api.answer import ResponseAnswer
from doge_export.serve.responses_api.reader import ResponseReader
from doge_export.serve.responses_api.store import ResponseStore
from doge_export.serve.service import TextService


def routes(service: TextService, reader: RequestReader, read: Read) -> list[Route]:
    """The routes for one bundle, with a store of their own."""
    store = ResponseStore()
    ours = ResponseReader(reader, service.tokenizer, store)

    async def create(request: Request) -> Response:
        wanted = await read(request, ours, True)
        return await answered(request, service, ResponseAnswer(wanted, reader.name, store))

    async def kept(request: Request) -> Response:
        key = request.path_params["response_id"]
        if request.method == "DELETE":
            if store.delete(key):
                return json_response({"id": key, "object": "response", "deleted": True})
        elif (stored := store.get(key)) is not None:
            return json_response(stored.response)
        raise HTTPException(404, f"No response {key[:80]!r} is kept here; the last ones used are.")

    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/{response_id}", kept, methods=["GET", "DELETE"]),
    ]
