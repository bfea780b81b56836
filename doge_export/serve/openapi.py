"""The server's routes and bodies in OpenAPI 3.1, from the table of fields that requests are checked by."""

__all__ = ["ROUTES", "description"]

from collections.abc import Mapping
from typing import Any

from doge_export.serve.constraints import RULES
from doge_export.serve.fields import MAX_CHOICES, OPTIONS, UNSUPPORTED

Schema = dict[str, Any]

_TYPES = {int: "integer", float: "number"}
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "integer", "description": "Seconds since 1970."}
_FINISH: Schema = {
    "enum": ["stop", "length"],
    "description": "stop: the model ended the text, a stop text came, or the text is whole by its rules. "
    "length: the tokens were used up.",
}
_ERRORS = {
    "400": "A field is missing, wrong or not supported; the message says which.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "500": "The model's logits are no numbers, or the server has a bug.",
    "503": "Too many requests wait already, or the server is ending.",
}


def description(version: str) -> Schema:
    """The OpenAPI document of `doge-export serve`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "doge-export serve",
            "version": version,
            "summary": "A Doge model behind HTTP.",
            "description": "The routes and bodies are those of OpenAI's text API. There is no password. "
            "Fields that are not described here are ignored.",
        },
        "servers": [{"url": "/"}],
        "paths": {path: dict(operations) for path, operations in ROUTES.items()},
        "components": {"schemas": {name: dict(schema) for name, schema in _SCHEMAS.items()}},
    }


def _optional(kind: str, meaning: str, **more: Any) -> Schema:
    """A field that may be left out, for which null stands too."""
    return {"type": [kind, "null"], "description": meaning, **more}


def _object(required: Mapping[str, Any], **optional: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _common_fields() -> Schema:
    """The fields that both posts take."""
    options = {
        name: _optional(_TYPES[each.kind], each.meaning, **each.limits) for name, each in OPTIONS.items()
    }
    off = {
        name: {"enum": [None, *values], "description": "Not supported: any other value is refused."}
        for name, values in UNSUPPORTED.items()
    }
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
        **{name: _or_null(schema) for name, schema in RULES.items()},
        **off,
    }


def _or_null(schema: Mapping[str, Any]) -> Schema:
    branches = schema.get("anyOf", [{name: each for name, each in schema.items() if name != "description"}])
    return {"anyOf": [{"type": "null"}, *branches], "description": schema["description"]}


def _completion(kind: str, choice: Schema) -> Schema:
    head = {"id": _TEXT, "object": {"const": kind}, "created": _SECONDS, "model": _TEXT}
    return _object({**head, "choices": _list(choice), "usage": _ref("Usage")})


def _chunk(kind: str, choice: Schema) -> Schema:
    whole = _completion(kind, choice)
    return whole | {"required": [name for name in whole["required"] if name != "usage"]}


def _choice(finish: Schema, **content: Any) -> Schema:
    return _object({"index": _COUNT, **content, "logprobs": {"type": "null"}, "finish_reason": finish})


_IDS = _list({"type": "integer", "minimum": 0}, minItems=1)
_PROMPT: Schema = {
    "anyOf": [_TEXT, _list(_TEXT, minItems=1), _IDS, _list(_IDS, minItems=1)],
    "description": "A text, token ids, or a list of either.",
}
_PART = _object({"text": _TEXT}, type=_TEXT)
_STILL: Schema = {"anyOf": [_FINISH, {"type": "null"}], "description": "null while the choice goes on."}
_DELTA = _object({"content": _TEXT}, role={"const": "assistant"})
_ANSWER = _object({"role": {"const": "assistant"}, "content": _TEXT})

_SCHEMAS: Mapping[str, Schema] = {
    "CompletionRequest": _object({"prompt": _PROMPT}, **_common_fields()),
    "ChatRequest": _object(
        {"messages": _list(_ref("Message"), minItems=1, description="The conversation so far.")},
        **_common_fields(),
    ),
    "Message": _object({"role": _TEXT, "content": {"anyOf": [_TEXT, _list(_PART)]}}),
    "Completion": _completion("text_completion", _choice(_FINISH, text=_TEXT)),
    "ChatCompletion": _completion("chat.completion", _choice(_FINISH, message=_ANSWER)),
    "CompletionChunk": _chunk("text_completion", _choice(_STILL, text=_TEXT)),
    "ChatCompletionChunk": _chunk("chat.completion.chunk", _choice(_STILL, delta=_DELTA)),
    "Usage": _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object({"id": _TEXT, "object": {"const": "model"}, "created": _SECONDS, "owned_by": _TEXT})
            ),
        }
    ),
    "Health": _object({"status": {"const": "ok"}}),
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


def _json(schema: Schema, meaning: str) -> Schema:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


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
    "/v1/models": _get("The model that is served.", _json(_ref("Models"), "A list of one.")),
    "/health": _get("Whether the server is there.", _json(_ref("Health"), "It is.")),
    "/openapi.json": _get("This description.", _json({"type": "object"}, "An OpenAPI 3.1 document.")),
    "/": _get("A page to try the model in a browser.", _PAGE),
}
