"""What `openapi.py` says of Anthropic's Messages."""

__all__ = ["MESSAGES_ROUTES", "MESSAGES_SCHEMAS"]

from collections.abc import Mapping

from doge_export.serve.constraints import TEXT_FORMAT
from doge_export.serve.messages_api.reader import BLOCKS, LABELS, OFF, TAKEN, THOUGHTS
from doge_export.serve.schemas import (
    ANY,
    COUNT,
    ERRORS,
    REUSED,
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
from doge_export.serve.tools.schemas import CALL_NEEDS_TOOLS, NAMED, STRICT, TOOL_PARAMETERS

_EVENTS = (
    *("message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop"),
    *("message_delta", "message_stop", "error"),
)
_NULL: Schema = {"type": "null"}
_BLOCK, _USE = dict(BLOCKS["text"]), dict(BLOCKS["tool_use"])
_SAID = [_BLOCK, _USE, *({**BLOCKS[name], "description": "Left out of the prompt."} for name in THOUGHTS)]
_TEXTS: Schema = {"anyOf": [TEXT, listed(_BLOCK)]}
_RESULT = object_of(
    {"type": {"const": "tool_result"}, "tool_use_id": TEXT}, content={"anyOf": [*_TEXTS["anyOf"], _NULL]}
)
_USER = object_of(
    {"role": {"const": "user"}, "content": {"anyOf": [TEXT, listed({"anyOf": [_BLOCK, _RESULT]})]}}
)
_ASSISTANT = object_of(
    {"role": {"const": "assistant"}, "content": {"anyOf": [TEXT, listed({"anyOf": _SAID})]}}
)
_CHOSEN: Schema = {
    "anyOf": [
        _NULL,
        object_of(
            {"type": {"enum": ["auto", "any", "none"]}},
            disable_parallel_tool_use=optional("boolean", "End the answer after its first call."),
        ),
        object_of({"type": {"const": "tool"}, "name": TEXT}),
    ],
    "description": "Which tools may or must be called; as tool_choice of a chat.",
}
_NO_OTHERS: Schema = {"additionalProperties": False, "allOf": [CALL_NEEDS_TOOLS]}
_COUNTED: Schema = {
    "model": optional("string", "A name that /v1/models gives; of a single model it may be left out."),
    "system": {"anyOf": [_NULL, *_TEXTS["anyOf"]], "description": "What the model is told first."},
    "tools": {"anyOf": [_NULL, listed(ref("MessagesTool"))], "description": "What the model may call."},
    "tool_choice": _CHOSEN,
    "output_config": {
        "type": ["object", "null"],
        "properties": {
            "format": {
                "anyOf": [*TEXT_FORMAT["anyOf"], _NULL],
                "description": TEXT_FORMAT["description"],
            }
        },
        "additionalProperties": False,
        "description": "What the text has to be. Beside tools: what it is where it is no call.",
    },
    **{name: {"description": "Nothing is done with it.", "type": ANY} for name in LABELS},
    **off(OFF),
}
_MESSAGES = listed(
    ref("MessagesMessage"),
    minItems=1,
    description="The conversation so far. If its last message is the assistant's, the answer goes on there.",
)

MESSAGES_SCHEMAS: Mapping[str, Schema] = {
    "MessagesRequest": object_of(
        {
            "messages": _MESSAGES,
            "max_tokens": dict(TAKEN["max_tokens"]),
        },
        **{name: nullable(schema) for name, schema in TAKEN.items() if name != "max_tokens"},
        **_COUNTED,
    )
    | _NO_OTHERS,
    "CountTokensRequest": object_of({"messages": _MESSAGES}, **_COUNTED) | _NO_OTHERS,
    "MessagesMessage": object_of(
        {
            "role": {"enum": ["user", "assistant"]},
            "content": {
                "anyOf": [TEXT, listed({"anyOf": [*_SAID, _RESULT]})],
                "description": "Results of tools are a user's, and come before the text. What an assistant "
                "thought, here or elsewhere, is not shown to the model.",
            },
        }
    )
    | {"anyOf": [_USER, _ASSISTANT]},
    "MessagesTool": object_of(
        {"name": NAMED},
        type={"enum": ["custom", None]},
        description=optional("string", "Shown to the model."),
        input_schema=TOOL_PARAMETERS,
        strict=STRICT,
    ),
    "MessagesAnswer": object_of(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT,
            "content": listed({"anyOf": [_BLOCK, _USE]}),
            "stop_reason": {
                "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", None],
                "description": "null while a stream goes on.",
            },
            "stop_sequence": {"type": ["string", "null"], "description": "The one that came."},
            "usage": ref("MessagesUsage"),
        }
    ),
    "MessagesEvent": object_of(
        {"type": {"enum": list(_EVENTS)}},
        message=ref("MessagesAnswer"),
        index=COUNT,
        content_block={"anyOf": [_BLOCK, _USE]},
        delta={"type": "object"},
        usage=ref("MessagesUsage"),
        error={"type": "object"},
    ),
    "MessagesUsage": object_of(
        {
            "input_tokens": COUNT
            | {
                "description": "Tokens of the prompt that were read for it. In a stream's first event, which "
                "comes before they are, all of them."
            },
            "cache_read_input_tokens": COUNT | {"description": REUSED},
            "cache_creation_input_tokens": COUNT | {"description": "0: keeping is not asked for."},
            "output_tokens": COUNT,
        }
    ),
    "TokenCount": object_of({"input_tokens": COUNT}),
    "MessagesError": object_of(
        {
            "type": {"const": "error"},
            "error": object_of(
                {"type": TEXT, "message": TEXT | {"description": "One sentence, and what to do about it."}}
            ),
        }
    ),
}

_STATUSES = {status: ERRORS[status] for status in ("400", "401", "404", "408", "413", "500")}

MESSAGES_ROUTES: Mapping[str, Schema] = {
    "/v1/messages": post(
        "Answer a conversation, by Anthropic's Messages.",
        "MessagesRequest",
        json_body(
            ref("MessagesAnswer"),
            "The answer. With `stream`: events, each named by its `type`, whose data are MessagesEvent "
            "objects.",
        ),
        "MessagesError",
        _STATUSES | {"529": ERRORS["503"]},
    ),
    "/v1/messages/count_tokens": post(
        "How many tokens a prompt has.",
        "CountTokensRequest",
        json_body(ref("TokenCount"), "The number."),
        "MessagesError",
        _STATUSES | {"529": "Too many bodies are being read already."},
        events=False,
    ),
}
