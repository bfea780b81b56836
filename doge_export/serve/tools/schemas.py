"""What `openapi.py` says of tools, and of messages, which may hold calls of them."""

__all__ = [
    "ARGUMENTS",
    "CALL",
    "CALL_NEEDS_TOOLS",
    "CHAT_FIELDS",
    "CHAT_FINISH",
    "CHAT_SCHEMAS",
    "NAMED",
    "STRICT",
    "TOOL_PARAMETERS",
    "allowed",
]

from collections.abc import Mapping

from doge_export.serve.schemas import COUNT, TEXT, Schema, listed, object_of, optional, ref
from doge_export.serve.tools.use import NAME

NAMED: Schema = TEXT | {"pattern": NAME}
TOOL_PARAMETERS: Schema = optional(
    "object", "What the tool takes, as a JSON schema. It is shown to the model."
)
STRICT: Schema = optional(
    "boolean",
    "With true the arguments are of the schema in every call. Without it they are where the call must be "
    "made, as far as rules can keep the schema.",
)
_SOME: Schema = {"required": ["tools"], "properties": {"tools": {"type": "array", "minItems": 1}}}
_CALLING = ("function", "allowed_tools", "any", "tool")
#: Where a call must be made there are tools.
CALL_NEEDS_TOOLS: Schema = {
    "if": {
        "required": ["tool_choice"],
        "properties": {
            "tool_choice": {
                "anyOf": [
                    {"const": "required"},
                    {
                        "type": "object",
                        "properties": {"type": {"enum": list(_CALLING)}},
                    },
                ]
            }
        },
    },
    "then": _SOME,
}
_PART = object_of({"text": TEXT}, type=TEXT)
ARGUMENTS: Schema = TEXT | {"description": "A JSON object, as text."}

_NAMED = object_of({"type": {"const": "function"}, "function": object_of({"name": TEXT})})


def allowed(named: Schema, **more: Schema) -> Schema:
    """Those of a request's tools that may be called, each as `named` names it."""
    return object_of({**more, "mode": {"enum": ["auto", "required"]}, "tools": listed(named, minItems=1)})


#: Fields of a chat's request.
CHAT_FIELDS: Mapping[str, Schema] = {
    "tools": listed(ref("Tool"), description="What the model may call. Its chat template must know tools."),
    "tool_choice": {
        "anyOf": [
            TEXT | {"enum": ["auto", "none", "required"]},
            _NAMED,
            object_of({"type": {"const": "allowed_tools"}, "allowed_tools": allowed(_NAMED)}),
        ],
        "description": "auto: the model chooses, as without it. none: it is not shown the tools. required, "
        "or the name of one: the answer is a call, of arguments of the tool's schema. allowed_tools: it is "
        "shown those alone.",
    },
}

CHAT_FINISH: Schema = {
    "enum": ["stop", "length", "tool_calls"],
    "description": "stop: the model ended the text, or a stop text came. length: the tokens were used up. "
    "tool_calls: the answer ended, and it holds calls of tools.",
}

#: A call in a message.
CALL: Schema = object_of({"function": object_of({"name": TEXT, "arguments": ARGUMENTS})}, id=TEXT, type=TEXT)

CHAT_SCHEMAS: Mapping[str, Schema] = {
    "Tool": object_of(
        {
            "type": {"const": "function"},
            "function": object_of(
                {"name": NAMED},
                description=optional("string", "Shown to the model."),
                parameters=TOOL_PARAMETERS,
                strict=STRICT,
            ),
        }
    ),
    "ToolCall": CALL,
    "ChatAnswer": object_of(
        {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}},
        tool_calls=listed(ref("ToolCall")),
    ),
    "ChatDelta": object_of(
        {},
        role={"const": "assistant"},
        content=TEXT,
        tool_calls=listed(
            object_of(
                {
                    "index": COUNT,
                    "id": TEXT,
                    "type": {"const": "function"},
                    "function": object_of({"name": TEXT, "arguments": ARGUMENTS}),
                }
            ),
            description="Each call comes whole, in one chunk.",
        ),
    ),
}
