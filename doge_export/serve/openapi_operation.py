"""The description of the routes beside those that generate: tokens, counters, and who may ask."""

__all__ = ["OPERATION_ROUTES", "OPERATION_SCHEMAS", "SCHEMES", "SECURITY"]

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NAME: Schema = {
    "type": ["string", "null"],
    "description": "A name that /v1/models gives; of a single model it may be left out.",
}
_WRONG = {
    "400": "A field is missing or wrong; the message says which.",
    "401": "A key is needed, and none or another one was sent.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "503": "Too many bodies are being read already, or the model cannot be loaded.",
}


def _flag(meaning: str) -> Schema:
    return {"type": ["boolean", "null"], "description": meaning}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _json(schema: Schema, meaning: str) -> Schema:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def _failures(*statuses: str) -> Schema:
    return {status: _json(_ref("Error"), _WRONG[status]) for status in statuses}


def _get(summary: str, answer: Schema, *statuses: str, **more: Any) -> Schema:
    return {"get": {"summary": summary, **more, "responses": {"200": answer, **_failures(*statuses)}}}


def _post(summary: str, request: str, answer: Schema) -> Schema:
    body = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    responses = {"200": answer, **_failures(*_WRONG)}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


_NO_TEXT: Schema = {"type": ["string", "null"]}
_NO_MESSAGES: Schema = {"type": ["array", "null"], "minItems": 1, "items": {"type": "object"}}
_MESSAGES: Schema = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_CHAT: Schema = {
    "add_generation_prompt": _flag(
        "End with what an answer begins with. Default: unless the last message goes on."
    ),
    "continue_final_message": _flag("End within the last message, after its content."),
    "tools": {"type": ["array", "null"], "items": {"type": "object"}, "description": "As JSON schemas."},
    "chat_template_kwargs": {
        "type": ["object", "null"],
        "description": "Further names that the template reads.",
    },
}
_SPECIAL = "Put the model's special tokens around the text. Default: true with prompt, else false."

OPERATION_SCHEMAS: Mapping[str, Schema] = {
    "Health": _object(
        {
            "status": {"const": "ok"},
            "models": _COUNT | {"description": "Where there are several: how many."},
            "loaded": _COUNT | {"description": "And how many of them are in memory."},
        },
        "status",
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer", "description": "Seconds since 1970."},
            "owned_by": _TEXT,
            "root": _TEXT | {"description": "The model's own name, where `id` is an alias."},
            "loaded": {"type": "boolean", "description": "Whether it is in memory."},
        },
        *("id", "object", "created", "owned_by", "root", "loaded"),
    ),
    "TokenizeRequest": _object(
        {
            "model": _NAME,
            "content": _NO_TEXT | {"description": "A text, by llama.cpp's name."},
            "prompt": _NO_TEXT | {"description": "A text, by vLLM's name."},
            "messages": _NO_MESSAGES | {"description": "A chat, instead of a text."},
            "add_special": _flag(_SPECIAL),
            "add_special_tokens": _flag("The same."),
            "parse_special": {
                "enum": [True, None],
                "description": "Special tokens in a text are always read as such.",
            },
            "with_pieces": _flag(
                "Say the text of each token, or its bytes where they are a part of a character."
            ),
            "return_token_strs": _flag("Say how the vocabulary spells each token, in token_strs."),
            **_CHAT,
        }
    )
    | {
        "oneOf": [
            {"required": [name], "properties": {name: {"type": kind}}}
            for name, kind in {"content": "string", "prompt": "string", "messages": "array"}.items()
        ]
    },
    "Tokens": _object(
        {
            "tokens": {
                "type": "array",
                "items": {
                    "anyOf": [
                        _COUNT,
                        _object(
                            {
                                "id": _COUNT,
                                "piece": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "integer"}}]},
                            },
                            *("id", "piece"),
                        ),
                    ]
                },
            },
            "count": _COUNT,
            "token_strs": {"type": "array", "items": _TEXT},
        },
        *("tokens", "count"),
    ),
    "DetokenizeRequest": _object(
        {
            "model": _NAME,
            "tokens": {"type": "array", "items": _COUNT | {"maximum": (1 << 32) - 1}},
            "skip_special_tokens": _flag("Leave special tokens out of the text. Default: false."),
        },
        "tokens",
    ),
    "Text": _object(
        {
            "content": _TEXT | {"description": "The text, by llama.cpp's name."},
            "prompt": _TEXT | {"description": "The same, by vLLM's name."},
        },
        *("content", "prompt"),
    ),
    "TemplateRequest": _object({"model": _NAME, "messages": _MESSAGES, **_CHAT}, "messages"),
    "Prompt": _object({"prompt": _TEXT}, "prompt"),
    "Slot": _object(
        {
            "id": _COUNT,
            "is_processing": {"type": "boolean"},
            "cache_bytes": _COUNT,  # of the slot
            "cache_limit_bytes": {"type": ["integer", "null"]},  # of all slots together
            "model": _TEXT | {"description": "Whose it is, where there are several models."},
        },
        *("id", "is_processing", "cache_bytes", "cache_limit_bytes"),
    ),
}

_METRICS: Schema = {
    "description": "Text in the format of Prometheus.",
    "content": {"text/plain": {"schema": _TEXT}},
}
_SLOTS: Schema = {"type": "array", "items": _ref("Slot")}
_OF: Schema = {
    "name": "model",
    "in": "query",
    "schema": _TEXT,
    "description": "The slots of this model alone.",
}
_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": _TEXT}

#: Path -> its operations.
OPERATION_ROUTES: Mapping[str, Schema] = {
    "/v1/models/{id}": _get(
        "One model.", _json(_ref("Model"), "The one of that name."), *("401", "404"), parameters=[_ID]
    ),
    "/tokenize": _post(
        "Turn a text or a chat into tokens.", "TokenizeRequest", _json(_ref("Tokens"), "The ids.")
    ),
    "/detokenize": _post("Turn tokens into a text.", "DetokenizeRequest", _json(_ref("Text"), "The text.")),
    "/apply-template": _post(
        "Show a chat as the text that the model reads.", "TemplateRequest", _json(_ref("Prompt"), "The text.")
    ),
    "/health": _get("Whether the server is there.", _json(_ref("Health"), "It is."), security=[]),
    "/metrics": _get("Counters of the server.", _METRICS, "401"),
    "/slots": _get(
        "What each slot of the loaded models does.",
        _json(_SLOTS, "One object a slot."),
        *("401", "404"),
        parameters=[_OF],
    ),
}

#: How a key is sent. Only a server with `--api-key` needs one.
SECURITY: Sequence[Schema] = ({}, {"bearer": []}, {"header": []})
SCHEMES: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
