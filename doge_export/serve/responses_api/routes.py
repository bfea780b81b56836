"""The routes of OpenAI's Responses."""

__all__ = ["count", "create", "delete", "retrieve"]

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from doge_export.serve.door import answered, json_response, read_body
from doge_export.serve.responses_api.answer import ResponseAnswer
from doge_export.serve.responses_api.reader import ResponseReader
from doge_export.serve.served import Model, Served


async def create(request: Request, served: Served) -> Response:
    """POST /v1/responses."""
    wanted, model, arrived = await read_body(request, served, lambda model: _reader(served, model).read)
    answer = ResponseAnswer(wanted, model.reader.name, served.responses)
    return await answered(request, served, model, answer, arrived)


async def count(request: Request, served: Served) -> Response:
    """POST /v1/responses/input_tokens."""
    tokens, _, _ = await read_body(request, served, lambda model: _reader(served, model).count)
    return json_response({"object": "response.input_tokens", "input_tokens": tokens})


async def retrieve(request: Request, served: Served) -> Response:
    """GET /v1/responses/ID: a response that is kept."""
    stored = served.responses.get(request.path_params["id"])
    if stored is None:
        raise _gone(request)
    return json_response(stored.response)


async def delete(request: Request, served: Served) -> Response:
    """DELETE /v1/responses/ID: forget it."""
    key = request.path_params["id"]
    if not served.responses.delete(key):
        raise _gone(request)
    return json_response({"id": key, "object": "response", "deleted": True})


def _reader(served: Served, model: Model) -> ResponseReader:
    return ResponseReader(model.reader, model.service.tokenizer, served.responses)


def _gone(request: Request) -> HTTPException:
    key = request.path_params["id"]
    return HTTPException(404, f"No response {key[:80]!r} is kept here; the last ones used are.")
