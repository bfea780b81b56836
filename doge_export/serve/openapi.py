"""The server's routes and bodies in OpenAPI 3.1, from the table of fields that requests are checked by."""

__all__ = ["ROUTES", "description"]

from collections.abc import Mapping
from typing import Any

from doge_export.serve.fields import MAX_CHOICES, OPTIONS, UNSUPPORTED
from doge_export.serve.messages_api.schemas import MESSAGES_ROUTES, MESSAGES_SCHEMAS
from doge_export.serve.openapi_operation import OPERATION_ROUTES, OPERATION_SCHEMAS, SCHEMES, SECURITY
from doge_export.serve.responses_api.schemas import RESPONSES_ROUTES, RESPONSES_SCHEMAS
from doge_export.serve.schemas import COUNT as _COUNT
from doge_export.serve.schemas import ERRORS as _ERRORS
from doge_export.serve.schemas import SECONDS as _SECONDS
from doge_export.serve.schemas import TEXT as _TEXT
from doge_export.serve.schemas import Schema, off, option_fields
from doge_export.serve.schemas import json_body as _json
from doge_export.serve.schemas import listed as _list
from doge_export.serve.schemas import object_of as _object
from doge_export.serve.schemas import optional as _optional
from doge_export.serve.schemas import ref as _ref
from doge_export.serve.tools.schemas import CHAT_FIELDS, CHAT_FINISH, CHAT_SCHEMAS

_FINISH: Schema = {
    "enum": ["stop", "length"],
    "description": "stop: the model ended the text, or a stop text came. length: the tokens were used up.",
}


def description(version: str) -> Schema:
    """The OpenAPI document of `doge-export serve`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "doge-export serve",
            "version": version,
            "summary": "A Doge model behind HTTP.",
            "description": "The routes and bodies are those of OpenAI's text API and of Anthropic's Messages."
            " In completions and chats, fields that are not described here are ignored; elsewhere they are "
            "refused.",
        },
        "servers": [{"url": "/"}],
        "paths": {path: dict(operations) for path, operations in ROUTES.items()},
        "security": list(SECURITY),
        "components": {
            "schemas": {name: dict(schema) for name, schema in _SCHEMAS.items()},
            "securitySchemes": dict(SCHEMES),
        },
    }


def _common_fields() -> Schema:
    """The fields that both posts take."""
    options = option_fields(OPTIONS, tuple(OPTIONS))
    return {
        "model": {
            "type": ["string", "null"],
            "description": "The name of the model that is served, as /v1/models gives it, or nothing.",
        },
        **options,
        "stop": {
            "anyOf": [{"type": "null"}, _TEXT | {"minLength": 1}, _list(_TEXT | {"minLength": 1})],
            "description": "The text ends before any of these.",
        },
        "n": _optional(
            "integer",
            f"Choices for each prompt; of all prompts together {MAX_CHOICES} at most.",
            minimum=1,
            maximum=MAX_CHOICES,
        ),
        "stream": _optional("boolean", "Send the text in pieces, as server-sent events."),
        "stream_options": _optional(
            "object",
            "With include_usage a stream ends with a chunk that has no choices and the usage.",
            properties={"include_usage": {"type": "boolean"}},
        ),
        **off(UNSUPPORTED),
    }


def _completion(kind: str, choice: Schema) -> Schema:
    head = {"id": _TEXT, "object": {"const": kind}, "created": _SECONDS, "model": _TEXT}
    return _object({**head, "choices": _list(choice), "usage": _ref("Usage")})


def _chunk(kind: str, choice: Schema) -> Schema:
    whole = _completion(kind, choice)
    return whole | {"required": [name for name in whole["required"] if name != "usage"]}


def _still(finish: Schema) -> Schema:
    return {"anyOf": [finish, {"type": "null"}], "description": "null while the choice goes on."}


def _choice(finish: Schema, **content: Any) -> Schema:
    return _object({"index": _COUNT, **content, "logprobs": {"type": "null"}, "finish_reason": finish})


_IDS = _list({"type": "integer", "minimum": 0}, minItems=1)
_PROMPT: Schema = {
    "anyOf": [_TEXT, _list(_TEXT, minItems=1), _IDS, _list(_IDS, minItems=1)],
    "description": "A text, token ids, or a list of either.",
}

_SCHEMAS: Mapping[str, Schema] = {
    "CompletionRequest": _object({"prompt": _PROMPT}, **_common_fields()),
    "ChatRequest": _object(
        {"messages": _list(_ref("Message"), minItems=1, description="The conversation so far.")},
        **CHAT_FIELDS,
        **_common_fields(),
    ),
    **CHAT_SCHEMAS,
    **RESPONSES_SCHEMAS,
    **MESSAGES_SCHEMAS,
    "Completion": _completion("text_completion", _choice(_FINISH, text=_TEXT)),
    "ChatCompletion": _completion("chat.completion", _choice(CHAT_FINISH, message=_ref("ChatAnswer"))),
    "CompletionChunk": _chunk("text_completion", _choice(_still(_FINISH), text=_TEXT)),
    "ChatCompletionChunk": _chunk(
        "chat.completion.chunk", _choice(_still(CHAT_FINISH), delta=_ref("ChatDelta"))
    ),
    "Usage": _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object({"id": _TEXT, "object": {"const": "model"}, "created": _SECONDS, "owned_by": _TEXT})
            ),
        }
    ),
    **OPERATION_SCHEMAS,
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT | {"description": "One sentence, and what to do about it."},
                    "type": {"enum": ["invalid_request_error", "server_error"]},
                    "param": {"type": "null"},
                    "code": {"type": "null"},
                }
            )
        }
    ),
}


def _get(summary: str, response: Schema) -> Schema:
    return {"get": {"summary": summary, "responses": {"200": response}}}


def _post(summary: str, request: str, whole: str, chunk: str) -> Schema:
    streamed = f"With `stream`: events whose data are {chunk} objects, or an Error, and [DONE] at the end."
    answer = _json(_ref(whole), f"The text. {streamed}")
    answer["content"]["text/event-stream"] = {"schema": _TEXT}
    failures = {status: _json(_ref("Error"), meaning) for status, meaning in _ERRORS.items()}
    body = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": {"200": answer, **failures}}}


_PAGE: Schema = {"description": "The page.", "content": {"text/html": {"schema": _TEXT}}}

#: Path -> its operations. `app.py` has a route for each.
ROUTES: Mapping[str, Schema] = {
    "/v1/completions": _post("Continue a text.", "CompletionRequest", "Completion", "CompletionChunk"),
    "/v1/chat/completions": _post(
        "Answer the last message of a conversation.", "ChatRequest", "ChatCompletion", "ChatCompletionChunk"
    ),
    **RESPONSES_ROUTES,
    **MESSAGES_ROUTES,
    "/v1/models": _get("The model that is served.", _json(_ref("Models"), "A list of one.")),
    **OPERATION_ROUTES,
    "/openapi.json": _get("This description.", _json({"type": "object"}, "An OpenAPI 3.1 document.")),
    "/": _get("A page to try the model in a browser.", _PAGE),
}
