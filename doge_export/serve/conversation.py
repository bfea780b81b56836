"""Messages of a conversation, checked, and as the tokens of a prompt."""

__all__ = ["chat_ids", "chat_text", "joined_text", "read_arguments", "template_variables", "templated"]

from collections.abc import Mapping, Sequence
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.errors import FieldError
from doge_export.serve.tools import ToolUse
from doge_export.serve.values import wrong

Message = dict[str, Any]

#: What a template is given by fields of their own.
_TAKEN = {
    "add_generation_prompt",
    "continue_final_message",
    "documents",
    "messages",
    "self",
    "template",
    "tools",
}


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: ToolUse | None = None,
    continued: bool = False,
    begun: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of `messages` and, unless the last of them is `continued`, or `begun` is false, of an answer's
    beginning. `variables`: what else the template reads.

    Raises:
        DogeExportError: the chat template refuses the messages, or would leave out calls that they hold.
    """
    source = tokenizer.template_source(with_tools=tools is not None)
    for at, message in enumerate(messages):
        if "tool_calls" in message and "tool_calls" not in source:
            raise wrong(
                "messages",
                f"Message {at} has calls of tools, and this model's chat template does not show them.",
                "Leave them out.",
            )
    text = templated(
        tokenizer,
        messages,
        begun,
        tools=None if tools is None else tools.definitions,
        continue_final_message=continued,
        **(variables or {}),
    )
    return text if tools is None else text + tools.opening


def templated(
    tokenizer: Tokenizer, messages: Sequence[Any], begun: bool | None = None, /, **asked: Any
) -> str:
    """The text of `messages` by the chat template. Calls of tools come without a content, and some published
    templates, Qwen3's among them, look into it all the same; those get an empty one.

    Raises:
        DogeExportError: the template refuses the messages.
    """
    try:
        return tokenizer.apply_chat_template(messages, begun, **asked)
    except DogeExportError:
        filled = [
            {**each, "content": ""} if each.get("tool_calls") and each.get("content") is None else each
            for each in messages
            if isinstance(each, dict)
        ]
        if filled == messages or len(filled) < len(messages):
            raise
        try:
            return tokenizer.apply_chat_template(filled, begun, **asked)
        except DogeExportError:
            pass
        raise  # what was wrong with the messages as they came


def template_variables(value: Any) -> dict[str, Any]:
    """What `chat_template_kwargs` of a request gives to the template.

    Raises:
        DogeExportError: it is no object, or sets what a field of its own sets.
    """
    name = "chat_template_kwargs"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, f"{name} is not an object.", code="invalid_type")
    if taken := sorted(_TAKEN & set(value)):
        raise wrong(name, f"{name} cannot set {taken[0]}.", "It is a field of its own, or none.")
    return value


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: ToolUse | None = None,
    continued: bool = False,
    field: str = "messages",
    begun: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of `chat_text`. `field`: where the request has the messages.

    Raises:
        FieldError: see there; or they are no text.
    """
    try:
        text = chat_text(tokenizer, messages, tools, continued, begun, variables)
        return tokenizer.encode(text, add_special_tokens=False)
    except FieldError:
        raise
    except DogeExportError as error:
        raise wrong(field, f"{field}: {error.message}", error.remedy) from None


def joined_text(content: Any, where: str) -> str:
    """The text of a message's `content`, a text or a list of parts.

    Raises:
        FieldError: it is something else, or a part is no text.
    """
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise wrong(where, f"{where} has a part that is no text; the model reads text alone.")
        return "".join(texts)
    if not isinstance(content, str):
        raise wrong(where, f"{where} is not a text or a list of texts.")
    return content


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
        raise wrong(where, f"{where} is not the text of a JSON object.")
    return read
