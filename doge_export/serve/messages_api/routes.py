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
    reader = MessagesReader(served.reader, served.service.tokenizer)
    wanted, arrived = await read_body(request, served, reader.read)
    answer = MessageAnswer(wanted, served.reader.name, served.service.tokenizer)
    return await answered(request, served, answer, arrived)


async def count(request: Request, served: Served) -> Response:
    """POST /v1/messages/count_tokens."""
    reader = MessagesReader(served.reader, served.service.tokenizer, counting=True)
    tokens, _ = await read_body(request, served, reader.read)
    return json_response({"input_tokens": tokens})
