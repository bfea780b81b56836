"""The body of a request to /v1/messages, checked: a conversation, and the options of its answer."""

__all__ = ["BLOCKS", "LABELS", "OFF", "TAKEN", "THOUGHTS", "MessageRequest", "MessagesReader"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.runtime import Rules
from doge_export.serve.constraints import read_format
from doge_export.serve.conversation import chat_ids
from doge_export.serve.fields import FIELDS, LARGEST
from doge_export.serve.requests import PASSED, RequestReader, TextRequest
from doge_export.serve.schemas import object_of
from doge_export.serve.tools import Tool, ToolChoice, ToolUse, read_definition, tool_use
from doge_export.serve.values import Off, Schema, check, missing, read_fields, wrong

Message = dict[str, Any]

MAX_STOPS = 64
#: Fields that say nothing of the answer; nothing is done with them.
LABELS = ("cache_control", "metadata")
#: Fields that would change the answer, and are not done here -> what means "off".
OFF: Off = {
    "container": (),
    "context_management": ({},),
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
    "thinking": ({"type": "disabled"},),
}
_COUNTED = (*LABELS, "messages", "model", "output_config", "system", "tool_choice", "tools")
#: Fields of an answer -> their schemas.
TAKEN: Mapping[str, Schema] = {
    "max_tokens": {
        "type": "integer",
        "minimum": 1,
        "maximum": LARGEST,
        "description": "The most new tokens.",
    },
    "stop_sequences": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "maxItems": MAX_STOPS,
        "description": "The text ends before any of these.",
    },
    "stream": {"type": "boolean", "description": "Send the answer in pieces, as server-sent events."},
    **{name: FIELDS[name].schema for name in PASSED},
}
_TEXT: Schema = {"type": "string"}
#: Type of a block -> its schema.
BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "text": object_of({"type": {"const": "text"}, "text": _TEXT}),
    "tool_use": object_of(
        {"type": {"const": "tool_use"}, "id": _TEXT, "name": _TEXT, "input": {"type": "object"}}
    ),
    "tool_result": object_of({"type": {"const": "tool_result"}, "tool_use_id": _TEXT}),
    "thinking": object_of({"type": {"const": "thinking"}, "thinking": _TEXT}),
    "redacted_thinking": object_of({"type": {"const": "redacted_thinking"}, "data": _TEXT}),
}
#: Blocks of an assistant that the model is not shown: what another one thought, as Anthropic leaves out that
#: of earlier turns. Clients send it back with the rest, whichever server they ask.
THOUGHTS = ("thinking", "redacted_thinking")
#: Anthropic's word -> that of `tool_use`.
_CHOICE: Schema = {
    "type": "object",
    "properties": {"disable_parallel_tool_use": {"type": ["boolean", "null"]}},
}
_OUTPUT: Schema = {
    "type": "object",
    "properties": {"format": {"type": ["object", "null"]}},
    "additionalProperties": False,
}
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
        given = read_fields(body, {} if self.counting else TAKEN, _COUNTED, OFF)
        tools, rule = self._tools(given), _rule(given.get("output_config"))
        messages = _conversation(given)
        continued = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        if continued and tools is not None and tools.forced is not None:
            raise wrong(
                "tool_choice",
                "tool_choice asks for a call, and the last message is the beginning of an answer.",
                "Leave one of them out.",
            )
        ids = chat_ids(self.tokenizer, messages, tools, continued)
        if self.counting:
            return len(ids)
        if "max_tokens" not in given:
            raise missing("max_tokens")
        names = ("messages", "max_tokens")
        text = self.reader.answer(ids, given, int(given["max_tokens"]), tools, names, rule)
        return MessageRequest(text, tuple(given.get("stop_sequences", ())))

    def _tools(self, given: Mapping[str, Any]) -> ToolUse | None:
        listed = given.get("tools", [])
        check(listed, {"type": "array"}, "tools")
        read = [_definition(tool, f"tools[{at}]") for at, tool in enumerate(listed)]
        choice = given.get("tool_choice", {"type": "auto"})
        kind = choice.get("type") if isinstance(choice, dict) else None
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise wrong("tool_choice", f"tool_choice is not an object of the type {', '.join(_CHOICES)}.")
        check(choice, _CHOICE, "tool_choice")
        one = choice.get("disable_parallel_tool_use")
        return tool_use(self.tokenizer, read, ToolChoice(_CHOICES[kind], choice.get("name")), not one)


def _definition(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
        raise wrong(where, f'{where} is not an object of the type "custom", the only one there is.')
    return read_definition(tool, where, "input_schema")


def _rule(config: Any) -> Rules | None:
    """What the text of the answer has to be."""
    if config is None:
        return None
    check(config, _OUTPUT, "output_config")
    form = config.get("format")
    return None if form is None else read_format(form, "output_config.format")


def _conversation(given: Mapping[str, Any]) -> list[Message]:
    listed = given.get("messages")
    if listed is None or listed == []:
        raise missing("messages")
    check(listed, {"type": "array"}, "messages")
    system = given.get("system")
    messages = [] if system is None else [{"role": "system", "content": _joined(system, "system")}]
    for at, message in enumerate(listed):
        where = f"messages[{at}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise wrong(where, f"{where}.role is neither user nor assistant.")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise wrong(where, f"{where}.content is not a text or a list of blocks.")
        messages += _answers(blocks, where) if role == "user" else _said(blocks, where)
    return messages


def _answers(blocks: list[Any], where: str) -> list[Message]:
    """The messages of a user: results of tools first, as Anthropic has it, then the text."""
    messages: list[Message] = []
    texts: list[str] = []
    for at, block in enumerate(blocks):
        kind, place = _kind(block, f"{where}.content[{at}]", ("text", "tool_result"))
        if kind == "text":
            texts.append(block["text"])
        else:
            key = block["tool_use_id"]
            content = block.get("content")
            content = "" if content is None else _joined(content, f"{place}.content")
            messages.append({"role": "tool", "tool_call_id": key, "content": content})
    if texts or not messages:
        messages.append({"role": "user", "content": "".join(texts)})
    return messages


def _said(blocks: list[Any], where: str) -> list[Message]:
    """The message of an assistant, without what it thought."""
    text, calls = "", []
    for at, block in enumerate(blocks):
        kind, _ = _kind(block, f"{where}.content[{at}]", ("text", "tool_use", *THOUGHTS))
        if kind == "text":
            text += block["text"]
        if kind != "tool_use":
            continue
        function = {"name": block["name"], "arguments": block["input"]}
        calls.append({"id": block["id"], "type": "function", "function": function})
    if calls:
        return [{"role": "assistant", "content": text or None, "tool_calls": calls}]
    return [{"role": "assistant", "content": text}]


def _joined(value: Any, where: str) -> str:
    """The text of a text or of a list of blocks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, f"{where} is not a text or a list of blocks.")
    for at, block in enumerate(value):
        _kind(block, f"{where}[{at}]", ("text",))
    return "".join(block["text"] for block in value)


def _kind(block: Any, where: str, known: tuple[str, ...]) -> tuple[str, str]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in known:
        raise wrong(where, f"{where} is not a block of the type {' or '.join(known)}.")
    check(block, BLOCKS[kind], where)
    return kind, where
