"""The routes of Anthropic's Messages."""

__all__ = ["count", "create"]

from starlette.requests import Request
from starlette.responses import Response

from doge_export.serve.door import answered, json_response, read_body
from doge_export.serve.messages_api.answer import MessageAnswer
from doge_export.serve.messages_api.reader import MessagesReader
from doge_export.serve.served import Served


async def create(request: Request, served: Served) -> Response:
    """POST /v1/messages."""
    wanted, model, arrived = await read_body(
        request, served, lambda model: MessagesReader(model.reader, model.service.tokenizer).read
    )
    answer = MessageAnswer(wanted, model.reader.name, model.service.tokenizer)
    return await answered(request, served, model, answer, arrived)


async def count(request: Request, served: Served) -> Response:
    """POST /v1/messages/count_tokens."""
    tokens, _, _ = await read_body(
        request,
        served,
        lambda model: MessagesReader(model.reader, model.service.tokenizer, counting=True).read,
    )
    return json_response({"input_tokens": tokens})
