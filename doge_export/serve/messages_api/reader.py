"""The body of a request to /v1/messages, checked: a conversation, and the options of its answer."""

__all__ = ["LABELS", "MAX_STOPS", "OFF", "MessageRequest", "MessagesReader"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.serve.checked import (
    PASSED,
    Off,
    check_fields,
    flag_of,
    generation,
    limit_of,
    list_of,
    name_of,
)
from doge_export.serve.conversation import chat_ids
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.tools import Tool, ToolUse, read_definition, tool_use

Message = dict[str, Any]

MAX_STOPS = 64
#: Fields that say nothing of the answer; nothing is done with them.
LABELS = ("cache_control", "metadata")
#: Fields that would change the answer, and are not done here -> what means "off".
OFF: Off = {
    "container": (),
    "context_management": ({},),
    "mcp_servers": ([],),
    "output_config": ({},),
    "service_tier": ("auto", "standard_only"),
    "thinking": ({"type": "disabled"},),
}
_COUNTED = frozenset((*LABELS, "messages", "model", "system", "tool_choice", "tools"))
_KNOWN = frozenset((*_COUNTED, *PASSED, "max_tokens", "stop_sequences", "stream"))
#: Anthropic's word -> that of `tool_use`.
_CHOICES = {"auto": "auto", "none": "none", "any": "required", "tool": "named"}


@dataclass(frozen=True)
class MessageRequest:
    """A request, and the texts that it wants its answer to end before."""

    text: TextRequest
    stops: tuple[str, ...]


@dataclass(frozen=True)
class MessagesReader:
    """Reads bodies for one bundle; for `counting`, no more of them than the length of the prompt needs."""

    reader: RequestReader
    tokenizer: Any
    counting: bool = False

    def read(self, body: Any) -> "MessageRequest | int":
        """The request in a decoded body, or the number of its prompt's tokens.

        Raises:
            DogeExportError: a field is missing, unknown, of another type or out of its range, or asks for
                what is not done here.
        """
        body = check_fields(body, _COUNTED if self.counting else _KNOWN, OFF)
        tools = self._tools(body)
        messages = _conversation(body)
        continued = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        if continued and tools is not None and tools.forced is not None:
            raise DogeExportError(
                "tool_choice asks for a call, and the last message is the beginning of an answer.",
                "Leave one of them out.",
            )
        ids = chat_ids(self.tokenizer, messages, tools, continued)
        if self.counting:
            return len(ids)
        limit, stops = limit_of(body, "max_tokens"), _stops(body)
        if limit is None:
            raise DogeExportError("The request has no max_tokens.")
        text = generation(self.reader, body, ids, limit, flag_of(body, "stream"), tools, stops)
        return MessageRequest(text, stops)

    def _tools(self, body: Mapping[str, Any]) -> ToolUse | None:
        listed = list_of(body, "tools")
        read = [_definition(tool, f"tools[{at}]") for at, tool in enumerate(listed)]
        choice = body.get("tool_choice")
        choice = {"type": "auto"} if choice is None else choice
        kind = choice.get("type") if isinstance(choice, dict) else None
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise DogeExportError(f"tool_choice is not an object of the type {', '.join(_CHOICES)}.")
        one = flag_of(choice, "disable_parallel_tool_use")
        return tool_use(self.tokenizer, read, _CHOICES[kind], choice.get("name"), not one)


def _definition(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
        raise DogeExportError(f'{where} is not an object of the type "custom", the only one there is.')
    return read_definition(tool, where, "input_schema")


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stops = list_of(body, "stop_sequences")
    if len(stops) > MAX_STOPS:
        raise DogeExportError(f"stop_sequences has {len(stops)} texts, and {MAX_STOPS} are the most.")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise DogeExportError("stop_sequences is not a list of texts that are not empty.")
    return tuple(stops)


def _conversation(body: Mapping[str, Any]) -> list[Message]:
    listed = list_of(body, "messages")
    if not listed:
        raise DogeExportError("The request has no messages.")
    system = body.get("system")
    messages = [] if system is None else [{"role": "system", "content": _joined(system, "system")}]
    for at, message in enumerate(listed):
        where = f"messages[{at}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise DogeExportError(f"{where}.role is neither user nor assistant.")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise DogeExportError(f"{where}.content is not a text or a list of blocks.")
        messages += _answers(blocks, where) if role == "user" else _said(blocks, where)
    return messages


def _answers(blocks: list[Any], where: str) -> list[Message]:
    """The messages of a user: results of tools first, as Anthropic has it, then the text."""
    messages: list[Message] = []
    texts: list[str] = []
    for at, block in enumerate(blocks):
        kind, place = _kind(block, f"{where}.content[{at}]", ("text", "tool_result"))
        if kind == "text":
            texts.append(name_of(block.get("text"), f"{place}.text"))
        else:
            key = name_of(block.get("tool_use_id"), f"{place}.tool_use_id")
            content = block.get("content")
            content = "" if content is None else _joined(content, f"{place}.content")
            messages.append({"role": "tool", "tool_call_id": key, "content": content})
    if texts or not messages:
        messages.append({"role": "user", "content": "".join(texts)})
    return messages


def _said(blocks: list[Any], where: str) -> list[Message]:
    """The message of an assistant."""
    text, calls = "", []
    for at, block in enumerate(blocks):
        kind, place = _kind(block, f"{where}.content[{at}]", ("text", "tool_use"))
        if kind == "text":
            text += name_of(block.get("text"), f"{place}.text")
            continue
        name, key = name_of(block.get("name"), f"{place}.name"), name_of(block.get("id"), f"{place}.id")
        if not isinstance(block.get("input"), dict):
            raise DogeExportError(f"{place}.input is not an object.")
        function = {"name": name, "arguments": block["input"]}
        calls.append({"id": key, "type": "function", "function": function})
    if calls:
        return [{"role": "assistant", "content": text or None, "tool_calls": calls}]
    return [{"role": "assistant", "content": text}]


def _joined(value: Any, where: str) -> str:
    """The text of a text or of a list of blocks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DogeExportError(f"{where} is not a text or a list of blocks.")
    texts = []
    for at, block in enumerate(value):
        _, place = _kind(block, f"{where}[{at}]", ("text",))
        texts.append(name_of(block.get("text"), f"{place}.text"))
    return "".join(texts)


def _kind(block: Any, where: str, known: tuple[str, ...]) -> tuple[str, str]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in known:
        raise DogeExportError(f"{where} is not a block of the type {' or '.join(known)}.")
    return kind, where
