"""What `openapi.py` says of OpenAI's Responses."""

__all__ = ["COUNTING", "RESPONSES_ROUTES", "RESPONSES_SCHEMAS"]

from collections.abc import Mapping
from typing import Any

from doge_export.serve.constraints import TEXT_FORMAT
from doge_export.serve.responses_api.reader import COUNTED, ITEM, LABELS, OFF, TAKEN
from doge_export.serve.schemas import (
    ANY,
    COUNT,
    ERRORS,
    REUSED,
    SECONDS,
    TEXT,
    Schema,
    json_body,
    listed,
    nullable,
    object_of,
    off,
    optional,
    post,
    ref,
)
from doge_export.serve.tools.schemas import (
    ARGUMENTS,
    CALL_NEEDS_TOOLS,
    NAMED,
    STRICT,
    TOOL_PARAMETERS,
    allowed,
)

_EVENTS = (
    *("response.created", "response.in_progress", "response.output_item.added"),
    *("response.content_part.added", "response.output_text.delta", "response.output_text.done"),
    *("response.content_part.done", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done", "response.completed"),
    *("response.incomplete", "response.failed"),
)
_FUNCTION: Schema = {"const": "function"}
_NAMED = object_of({"type": _FUNCTION, "name": TEXT})
_TEXTS: Schema = {"anyOf": [TEXT, listed(object_of({"text": TEXT}))]}
_MESSAGE = object_of(
    {"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": _TEXTS},
    type={"enum": ["message", None]},
)
_CALL = object_of({"type": {"const": "function_call"}, "call_id": TEXT, "name": TEXT, "arguments": ARGUMENTS})
_OUTPUT = object_of({"type": {"const": "function_call_output"}, "call_id": TEXT, "output": _TEXTS})
_PART = object_of({"type": {"const": "output_text"}, "text": TEXT, "annotations": listed({"type": "object"})})
_ANSWERED = object_of(
    {"id": TEXT, "type": {"enum": ["message", "function_call"]}, "status": TEXT},
    role={"const": "assistant"},
    content=listed(_PART),
    call_id=TEXT,
    name=TEXT,
    arguments=ARGUMENTS,
)


def _request(fields: Mapping[str, Mapping[str, Any]]) -> Schema:
    """The body of a request: the prompt's fields, and these."""
    request = object_of(
        {
            "input": {
                "anyOf": [TEXT, listed(ref("ResponseInput"), minItems=1)],
                "description": "What the user says, or items of a conversation.",
            }
        },
        model=optional("string", "A name that /v1/models gives; of a single model it may be left out."),
        **{name: nullable(schema) for name, schema in fields.items()},
        tools={"anyOf": [{"type": "null"}, listed(ref("ResponseTool"))], "description": "As in a chat."},
        tool_choice={
            "anyOf": [
                {"type": "null"},
                {"enum": ["auto", "none", "required"]},
                _NAMED,
                allowed(_NAMED, type={"const": "allowed_tools"}),
            ],
            "description": "As in a chat.",
        },
        text={
            "type": ["object", "null"],
            "properties": {
                "format": {
                    "anyOf": [*TEXT_FORMAT["anyOf"], {"type": "null"}],
                    "description": TEXT_FORMAT["description"],
                },
                "verbosity": {"enum": ["medium", None], "description": "Not supported."},
            },
            "additionalProperties": False,
            "description": "What the text has to be. Beside tools: what it is where it is no call.",
        },
        **{name: {"description": "Nothing is done with it.", "type": ANY} for name in LABELS},
        **off(OFF),
    )
    return request | {"additionalProperties": False, "allOf": [CALL_NEEDS_TOOLS]}


RESPONSES_SCHEMAS: Mapping[str, Schema] = {
    "ResponseRequest": _request(TAKEN),
    "InputTokensRequest": _request(COUNTED),
    "InputTokens": object_of({"object": {"const": "response.input_tokens"}, "input_tokens": COUNT}),
    "ResponseInput": dict(ITEM) | {"anyOf": [_MESSAGE, _CALL, _OUTPUT]},
    "ResponseTool": object_of(
        {"type": _FUNCTION, "name": NAMED},
        description=optional("string", "Shown to the model."),
        parameters=TOOL_PARAMETERS,
        strict=STRICT,
    ),
    "Response": object_of(
        {
            "id": TEXT,
            "object": {"const": "response"},
            "created_at": SECONDS,
            "status": {
                "enum": ["in_progress", "completed", "incomplete", "failed"],
                "description": "incomplete: the tokens were used up. failed: in a stream that broke off.",
            },
            "model": TEXT,
            "output": listed(ref("ResponseOutput")),
            "usage": {"anyOf": [ref("ResponseUsage"), {"type": "null"}]},
            "error": {"type": ["object", "null"]},
            "incomplete_details": {"type": ["object", "null"]},
            "instructions": {"type": ["string", "null"]},
            "previous_response_id": {"type": ["string", "null"]},
            "metadata": {"type": "object", "additionalProperties": TEXT},
        },
    ),
    "ResponseOutput": _ANSWERED,
    "ResponseUsage": object_of(
        {
            "input_tokens": COUNT,
            "input_tokens_details": object_of({"cached_tokens": COUNT | {"description": REUSED}}),
            "output_tokens": COUNT,
            "total_tokens": COUNT,
        }
    ),
    "ResponseEvent": object_of(
        {"type": {"enum": list(_EVENTS)}, "sequence_number": COUNT},
        response=ref("Response"),
        output_index=COUNT,
        content_index=COUNT,
        item_id=TEXT,
        item=ref("ResponseOutput"),
        part=_PART,
        delta=TEXT,
        text=TEXT,
        arguments=ARGUMENTS,
    ),
    "ResponseDeleted": object_of({"id": TEXT, "object": {"const": "response"}, "deleted": {"const": True}}),
}

#: What errors of routes that only count mean.
COUNTING: Mapping[str, str] = {
    **ERRORS,
    "503": "Too many bodies are being read already, or the model cannot be loaded.",
}
_GONE = {"404": json_body(ref("Error"), "It is not kept, or no longer.")}
_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": TEXT}

RESPONSES_ROUTES: Mapping[str, Schema] = {
    "/v1/responses": post(
        "Answer a text or a conversation, and keep the answer.",
        "ResponseRequest",
        json_body(
            ref("Response"),
            "The response. With `stream`: events, each named by its `type`, whose data are ResponseEvent "
            "objects. The last one has the whole response.",
        ),
        "Error",
        ERRORS,
    ),
    "/v1/responses/input_tokens": post(
        "How many tokens a prompt has.",
        "InputTokensRequest",
        json_body(ref("InputTokens"), "The number."),
        "Error",
        ERRORS,
        events=False,
    ),
    "/v1/responses/{id}": {
        "get": {
            "summary": "A response that is kept.",
            "parameters": [_ID],
            "responses": {"200": json_body(ref("Response"), "As it was given."), **_GONE},
        },
        "delete": {
            "summary": "Forget a response. Those after it keep the conversation.",
            "parameters": [_ID],
            "responses": {"200": json_body(ref("ResponseDeleted"), "It is gone."), **_GONE},
        },
    },
}
