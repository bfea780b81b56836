"""The route of llama.cpp's own completions."""

__all__ = ["complete"]

from starlette.requests import Request
from starlette.responses import Response

from doge_export.serve.door import answered, read_body
from doge_export.serve.native_api.answer import NativeAnswer
from doge_export.serve.native_api.reader import NativeReader
from doge_export.serve.served import Served


async def complete(request: Request, served: Served) -> Response:
    """POST /completion."""
    wanted, model, arrived = await read_body(request, served, lambda model: NativeReader(model.reader).read)
    answer = NativeAnswer(wanted, model.reader.name, arrived)
    return await answered(request, served, model, answer, arrived)
