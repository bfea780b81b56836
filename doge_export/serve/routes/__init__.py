"""The routes, one a row. A new one is a file beside this, and a row here."""

__all__ = ["ROUTES", "Row"]

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from doge_export.serve.messages_api import routes as anthropic
from doge_export.serve.native_api import routes as native
from doge_export.serve.responses_api import routes as responses
from doge_export.serve.routes import about, text, tokens, watching
from doge_export.serve.served import Served


class Row(NamedTuple):
    """A method and a path, and what responds. `paths.py` adds the other names of the path."""

    method: str
    path: str
    respond: Callable[[Request, Served], Awaitable[Response]]


ROUTES: Sequence[Row] = (
    Row("POST", "/v1/completions", text.completions),
    Row("POST", "/v1/chat/completions", text.chat),
    Row("POST", "/v1/chat/completions/input_tokens", text.count),
    Row("POST", "/v1/responses", responses.create),
    Row("POST", "/v1/responses/input_tokens", responses.count),
    Row("GET", "/v1/responses/{id}", responses.retrieve),
    Row("DELETE", "/v1/responses/{id}", responses.delete),
    Row("POST", "/v1/messages", anthropic.create),
    Row("POST", "/v1/messages/count_tokens", anthropic.count),
    Row("POST", "/completion", native.complete),
    Row("GET", "/v1/models", about.models),
    Row("GET", "/v1/models/{id:path}", about.model),
    Row("POST", "/tokenize", tokens.tokenize),
    Row("POST", "/detokenize", tokens.detokenize),
    Row("POST", "/apply-template", tokens.apply_template),
    Row("GET", "/health", watching.health),
    Row("GET", "/metrics", watching.metrics),
    Row("GET", "/slots", watching.slots),
    Row("GET", "/openapi.json", about.described),
)
