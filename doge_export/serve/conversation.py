"""Messages of a conversation, checked, and as the tokens of a prompt."""

__all__ = ["chat_ids", "joined_text", "read_arguments", "read_messages"]

from collections.abc import Mapping, Sequence
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.tools import ToolUse

Message = dict[str, Any]


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: ToolUse | None = None, continued: bool = False
) -> list[int]:
    """The tokens of `messages` and, unless the last of them is `continued`, of an answer's beginning.

    Raises:
        DogeExportError: the chat template refuses the messages, or would leave out calls that they hold.
    """
    source = tokenizer.template_source(with_tools=tools is not None)
    for at, message in enumerate(messages):
        if "tool_calls" in message and "tool_calls" not in source:
            raise DogeExportError(
                f"Message {at} has calls of tools, and this model's chat template does not show them.",
                "Leave them out.",
            )
    text = tokenizer.apply_chat_template(
        messages,
        tools=None if tools is None else tools.definitions,
        continue_final_message=continued,
    )
    opening = "" if tools is None else tools.opening
    return tokenizer.encode(text + opening, add_special_tokens=False)


def read_messages(messages: Any) -> list[Message]:
    """The `messages` of a request as the chat template takes them.

    Raises:
        DogeExportError: there are none, or one is not as it must be.
    """
    if not isinstance(messages, list) or not messages:
        raise DogeExportError("The request has no messages.")
    return [_message(message, at) for at, message in enumerate(messages)]


def joined_text(content: Any) -> str | None:
    """The text of a message's `content`, a text or a list of parts; None for anything else.

    Raises:
        DogeExportError: a part is no text.
    """
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise DogeExportError("A message has a part that is no text; the model reads text alone.")
        return "".join(texts)
    return content if isinstance(content, str) else None


def _message(message: Any, at: int) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DogeExportError("A message is not an object with a role and a content.")
    calls = _calls(message.get("tool_calls"), f"messages[{at}].tool_calls")
    content = joined_text(message.get("content"))
    if content is None and (message.get("content") is not None or not calls):
        raise DogeExportError("A message has no content.")
    read: Message = {"role": message["role"], "content": content}
    if calls:
        read["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if not isinstance(message.get(key), str | None):
            raise DogeExportError(f"messages[{at}].{key} is not a text.")
        if message["role"] == "tool" and message.get(key) is not None:
            read[key] = message[key]
    return read


def _calls(calls: Any, where: str) -> list[Message]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise DogeExportError(f"{where} is no list of calls.")
    return [_call(call, f"{where}[{at}]") for at, call in enumerate(calls)]


def _call(call: Any, where: str) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DogeExportError(f"{where} has no function with a name and arguments.")
    arguments = read_arguments(function.get("arguments"), f"{where}.function.arguments")
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return read | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def read_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """The object that a call's `arguments` are the JSON of: templates write it as JSON themselves.

    Raises:
        DogeExportError: they are not the text of a JSON object.
    """
    try:
        read = parse_json(arguments.encode()) if isinstance(arguments, str) and arguments else {}
    except ValueError:
        read = None
    if not isinstance(read, dict) or not isinstance(arguments, str):
        raise DogeExportError(f"{where} is not the text of a JSON object.")
    return read
