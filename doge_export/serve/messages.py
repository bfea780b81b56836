"""The messages of a chat, checked, as a chat template reads them."""

__all__ = ["MESSAGE", "read_messages"]

import json
from collections.abc import Mapping
from typing import Any

from doge_export.serve.errors import FieldError, shown
from doge_export.serve.values import Schema, check, unknown, wrong

_TEXT: Schema = {"type": "string"}
_MAYBE: Schema = {"type": ["string", "null"]}
#: What a message may have beside role and content; a template reads it, or not.
_FOR_TEMPLATES: Mapping[str, Schema] = {
    "name": _MAYBE,
    "reasoning_content": _MAYBE,
    "tool_call_id": _MAYBE,
    "tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "object"}}]},
}
#: What answers have that clients send back as they came: nothing.
_EMPTY: Mapping[str, Schema] = {
    "annotations": {"anyOf": [{"type": "null"}, {"type": "array"}]},
    "audio": {"type": "null"},
    "function_call": {"type": "null"},
    "refusal": _MAYBE,
}
_PART: Schema = {
    "type": "object",
    "required": ["text"],
    "properties": {"text": _TEXT, "type": {"const": "text"}},
}
_CONTENT: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _PART}]}

MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": _TEXT,
        "content": {
            "anyOf": [*_CONTENT["anyOf"], {"type": "null"}],
            "description": "null where an assistant's message has tool_calls.",
        },
        **_FOR_TEMPLATES,
        **_EMPTY,
    },
    "additionalProperties": False,
    "anyOf": [
        {"required": ["content"], "properties": {"content": _CONTENT}},
        {
            "required": ["tool_calls"],
            "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        },
    ],
}


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages for a chat template, each content as one text.

    Raises:
        FieldError: there are none, or one is not as MESSAGE says.
    """
    if messages is None or messages == []:
        raise FieldError("The request has no messages.", field="messages", code="missing_required_parameter")
    if not isinstance(messages, list):
        raise wrong("messages", f"messages is {shown(messages)}, not a list.", code="invalid_type")
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Any, path: str) -> dict[str, Any]:
    check(message, {"type": "object"}, path)
    for name, value in message.items():
        if name not in MESSAGE["properties"]:
            raise unknown(name, MESSAGE["properties"], path)
        if name not in ("role", "content"):
            check(value, MESSAGE["properties"][name], f"{path}.{name}")
    role = message.get("role")
    check(role, _TEXT, f"{path}.role")
    result: dict[str, Any] = {"role": role}
    calls = message.get("tool_calls")
    if (content := message.get("content")) is not None or role != "assistant" or not calls:
        result["content"] = _content(content, path)
    result |= {name: message[name] for name in _FOR_TEMPLATES if message.get(name) is not None}
    if calls:
        result["tool_calls"] = [_call(call) for call in calls]
    return result


def _content(content: Any, path: str) -> str:
    if content is None:
        raise wrong(path, f"{path} has no content.", code="missing_required_parameter")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(
            path, f"{path}.content is {shown(content)}, not a text or a list of parts.", code="invalid_type"
        )
    for at, part in enumerate(content):
        is_text = isinstance(part, dict) and part.get("type", "text") == "text"
        if not (is_text and isinstance(part.get("text"), str)):
            raise wrong(path, f"{path}.content[{at}] is no text; the model reads text alone.")
    return "".join(part["text"] for part in content)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as an object, which templates write in their own way; over HTTP they
    are a text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call
