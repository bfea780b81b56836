"""Messages of a conversation, checked, and as the tokens of a prompt."""

__all__ = ["chat_ids", "chat_text", "joined_text", "read_arguments"]

from collections.abc import Sequence
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.errors import FieldError
from doge_export.serve.tools import ToolUse
from doge_export.serve.values import wrong

Message = dict[str, Any]


def chat_text(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: ToolUse | None = None, continued: bool = False
) -> str:
    """The text of `messages` and, unless the last of them is `continued`, of an answer's beginning.

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
    text = tokenizer.apply_chat_template(
        messages,
        tools=None if tools is None else tools.definitions,
        continue_final_message=continued,
    )
    return text if tools is None else text + tools.opening


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: ToolUse | None = None,
    continued: bool = False,
    field: str = "messages",
) -> list[int]:
    """The tokens of `chat_text`. `field`: where the request has the messages.

    Raises:
        FieldError: see there; or they are no text.
    """
    try:
        text = chat_text(tokenizer, messages, tools, continued)
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
