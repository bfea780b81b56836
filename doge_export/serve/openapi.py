"""The server's routes and bodies in OpenAPI 3.1, from the table of fields that requests are checked by."""

__all__ = ["ROUTES", "description"]

from collections.abc import Mapping
from typing import Any

from doge_export.serve.fields import LARGEST, known_fields
from doge_export.serve.messages import MESSAGE
from doge_export.serve.messages_api.schemas import MESSAGES_ROUTES, MESSAGES_SCHEMAS
from doge_export.serve.native_api.schemas import NATIVE_ROUTES, NATIVE_SCHEMAS
from doge_export.serve.openapi_operation import OPERATION_ROUTES, OPERATION_SCHEMAS, SCHEMES, SECURITY
from doge_export.serve.responses_api.schemas import COUNTING, RESPONSES_ROUTES, RESPONSES_SCHEMAS
from doge_export.serve.schemas import COUNT as _COUNT
from doge_export.serve.schemas import ERRORS, EVENTS, REUSED, Schema, post
from doge_export.serve.schemas import SECONDS as _SECONDS
from doge_export.serve.schemas import TEXT as _TEXT
from doge_export.serve.schemas import json_body as _json
from doge_export.serve.schemas import listed as _list
from doge_export.serve.schemas import nullable as _nullable
from doge_export.serve.schemas import object_of as _object
from doge_export.serve.schemas import ref as _ref
from doge_export.serve.tools.schemas import CALL_NEEDS_TOOLS, CHAT_FINISH, CHAT_SCHEMAS

_NULL: Schema = {"type": "null"}
_FINISH: Schema = {
    "enum": ["stop", "length"],
    "description": "stop: the model ended the text, a stop text came, or the text is whole by its rules. "
    "length: the tokens were used up.",
}
_ERRORS = {
    **ERRORS,
    "400": "A field is missing, unknown, wrong or not supported; `param` says which, `code` what it is.",
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
            " A field that is not described here is refused.",
        },
        "servers": [{"url": "/"}],
        "paths": {path: dict(operations) for path, operations in ROUTES.items()},
        "security": list(SECURITY),
        "components": {
            "schemas": {name: dict(schema) for name, schema in _SCHEMAS.items()},
            "securitySchemes": dict(SCHEMES),
        },
    }


def _request(chat: bool, **prompt: Any) -> Schema:
    """The body of a request: what there must be, and every field that may be left out."""
    taken, unsupported = known_fields(chat)
    model = "A name that /v1/models gives; of a single model it may be left out."
    fields = {
        "model": {"type": ["string", "null"], "description": model},
        **{name: _nullable(each.schema) for name, each in taken.items()},
        **{
            name: {"enum": [None, *each.off], "description": "Not supported: any other value is refused."}
            for name, each in unsupported.items()
        },
    }
    together = [_TOP_NEEDS_LOGPROBS, CALL_NEEDS_TOOLS] if chat else []
    return _object(prompt, **fields) | {
        "additionalProperties": False,
        "allOf": [_LIMIT_ONCE, _NOTHING_NEW_NEEDS_ECHO, *together],
    }


def _unless(bad: Schema, **needed: Any) -> Schema:
    """Where a field is as `bad` says, others must be as is `needed`."""
    return {"if": _object(bad), "then": _object(needed)}


_LIMIT_ONCE = {
    "not": _object({"max_tokens": {"type": "integer"}, "max_completion_tokens": {"type": "integer"}})
}
_TOP_NEEDS_LOGPROBS = _unless({"top_logprobs": {"type": "integer", "minimum": 1}}, logprobs={"const": True})
_NOTHING_NEW_NEEDS_ECHO = _unless({"max_tokens": {"const": 0}}, echo={"const": True})


def _completion(kind: str, choice: Schema) -> Schema:
    head = {"id": _TEXT, "object": {"const": kind}, "created": _SECONDS, "model": _TEXT}
    head["system_fingerprint"] = _TEXT | {
        "description": "Another one where the bundle or the program is another."
    }
    return _object({**head, "choices": _list(choice), "usage": _ref("Usage")})


def _chunk(kind: str, choice: Schema) -> Schema:
    whole = _completion(kind, choice)
    usage = {
        "anyOf": [_ref("Usage"), _NULL],
        "description": "With include_usage: null but in the last chunk, which has no choices; with "
        "continuous_usage_stats what was made so far.",
    }
    return whole | {
        "required": [name for name in whole["required"] if name != "usage"],
        "properties": whole["properties"] | {"usage": usage},
    }


def _still(finish: Schema) -> Schema:
    return {"anyOf": [finish, _NULL], "description": "null while the choice goes on."}


def _choice(finish: Schema, logprobs: str, **content: Any) -> Schema:
    scores = {"anyOf": [_ref(logprobs), _NULL], "description": "null where they were not asked for."}
    return _object({"index": _COUNT, **content, "logprobs": scores, "finish_reason": finish})


_IDS = _list({"type": "integer", "minimum": 0, "maximum": LARGEST}, minItems=1)
_PROMPT: Schema = {
    "anyOf": [_TEXT, _list(_TEXT, minItems=1), _IDS, _list(_IDS, minItems=1)],
    "description": "A text, token ids, or a list of either.",
}

_ANSWER = _choice(CHAT_FINISH, "ChatLogprobs", message=_ref("ChatAnswer"))
_DELTA = _choice(_still(CHAT_FINISH), "ChatLogprobs", delta=_ref("ChatDelta"))

_SPELLED = "The end of text is among them. A part of a character is spelled in bytes: bytes:\\xe2\\x82."
_SCORED: Schema = {
    "token": _TEXT | {"description": _SPELLED},
    "bytes": {
        "anyOf": [_list({"type": "integer", "minimum": 0, "maximum": 255}), _NULL],
        "description": "null for a special token, which the text leaves out.",
    },
    "logprob": {"type": "number", "description": "-9999 where the model gives it no chance."},
}

_SCHEMAS: Mapping[str, Schema] = {
    "CompletionRequest": _request(False, prompt=_PROMPT),
    "ChatRequest": _request(
        True, messages=_list(_ref("Message"), minItems=1, description="The conversation so far.")
    ),
    "Message": dict(MESSAGE),
    **CHAT_SCHEMAS,
    **RESPONSES_SCHEMAS,
    **MESSAGES_SCHEMAS,
    **NATIVE_SCHEMAS,
    "Completion": _completion("text_completion", _choice(_FINISH, "Logprobs", text=_TEXT)),
    "ChatCompletion": _completion("chat.completion", _ANSWER),
    "CompletionChunk": _chunk("text_completion", _choice(_still(_FINISH), "Logprobs", text=_TEXT)),
    "ChatCompletionChunk": _chunk("chat.completion.chunk", _DELTA),
    "Logprobs": _object(
        {
            "tokens": _list(_TEXT, description=_SPELLED),
            "token_logprobs": _list(
                {"type": ["number", "null"]}, description="null for the first token of a prompt."
            ),
            "top_logprobs": _list(
                {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
                description="The likeliest tokens in each place, and the one that stands there.",
            ),
            "text_offset": _list(_COUNT, description="Where each token begins in the text, in characters."),
        }
    ),
    "ChatLogprobs": _object({"content": _list(_ref("TokenLogprob")), "refusal": _NULL}),
    "TokenLogprob": _object({**_SCORED, "top_logprobs": _list(_object(_SCORED))}),
    "Usage": _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT | {"description": REUSED}}),
        }
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": _list(_ref("Model")),
        }
    ),
    **OPERATION_SCHEMAS,
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT | {"description": "One sentence, and what to do about it."},
                    "type": {"enum": ["invalid_request_error", "server_error"]},
                    "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                    "code": {
                        "type": ["string", "null"],
                        "description": "Such as unknown_parameter, invalid_type or invalid_value.",
                    },
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
    answer["content"]["text/event-stream"] = {"schema": EVENTS}
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
    "/v1/chat/completions/input_tokens": post(
        "How many tokens the prompt of a chat has.",
        "ChatRequest",
        _json(_ref("InputTokens"), "The number."),
        "Error",
        COUNTING,
        events=False,
    ),
    **RESPONSES_ROUTES,
    **MESSAGES_ROUTES,
    **NATIVE_ROUTES,
    "/v1/models": _get("The models that are served.", _json(_ref("Models"), "Each by each of its names.")),
    **OPERATION_ROUTES,
    "/openapi.json": _get("This description.", _json({"type": "object"}, "An OpenAPI 3.1 document.")),
    "/": _get("A page to try the model in a browser.", _PAGE),
}
