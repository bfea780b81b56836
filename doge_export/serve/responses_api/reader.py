"""The body of a request to /v1/responses, checked: a conversation, and the options of its answer."""

__all__ = ["LABELS", "OFF", "ResponseReader", "ResponseRequest"]

import secrets
from collections.abc import Mapping, Sequence
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
    text_of,
)
from doge_export.serve.constraints import read_format
from doge_export.serve.conversation import chat_ids, joined_text, read_arguments
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.responses_api.store import ResponseStore
from doge_export.serve.tools import Tool, choice_kind, read_definition, tool_use
from doge_export.serve.values import Schema, check

Message = dict[str, Any]

#: Fields that are names for the client's own use; nothing is done with them.
LABELS = ("prompt_cache_key", "safety_identifier", "user")
#: Fields that would change the answer, and are not done here -> what means "off".
OFF: Off = {
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "prompt": (),
    "reasoning": ({},),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
_TEXT: Schema = {
    "type": "object",
    "properties": {
        "format": {"type": ["object", "null"]},
        "verbosity": {"type": ["string", "null"], "enum": ["medium", None]},
    },
    "additionalProperties": False,
}
_ANY_TEXT = {"type": "text"}
_READ = (
    *("input", "instructions", "max_output_tokens", "metadata", "model", "parallel_tool_calls"),
    *("previous_response_id", "store", "stream", "text", "tool_choice", "tools"),
)
_KNOWN = frozenset((*_READ, *PASSED, *LABELS))
#: What templates know as the role of instructions, whatever a client calls it.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


@dataclass(frozen=True)
class ResponseRequest:
    """A request. `messages`: the conversation so far, without instructions. `echoed`: fields that the
    response gives back."""

    key: str
    text: TextRequest
    messages: tuple[Message, ...]
    echoed: Mapping[str, Any]
    store: bool


class ResponseReader:
    """Reads bodies for one bundle."""

    def __init__(self, reader: RequestReader, tokenizer: Any, store: ResponseStore) -> None:
        self._reader, self._tokenizer, self._store = reader, tokenizer, store

    def read(self, body: Any) -> ResponseRequest:
        """The request in a decoded body.

        Raises:
            DogeExportError: a field is missing, unknown, of another type or out of its range, asks for what
                is not done here, or names a response that is not kept.
        """
        body = check_fields(body, _KNOWN, OFF)
        instructions, before = text_of(body, "instructions"), text_of(body, "previous_response_id")
        messages = (*self._before(before), *_input(body.get("input")))
        listed = list_of(body, "tools")
        read = [_definition(tool, f"tools[{at}]") for at, tool in enumerate(listed)]
        choice = body.get("tool_choice")
        name = choice.get("name") if isinstance(choice, dict) else None
        parallel = body.get("parallel_tool_calls")
        tools = tool_use(self._tokenizer, read, choice_kind(choice, name), name, parallel)
        first = [] if instructions is None else [{"role": "system", "content": instructions}]
        ids = chat_ids(self._tokenizer, [*first, *messages], tools, field="input")
        limit = limit_of(body, "max_output_tokens")
        form = _format(body.get("text"))
        rule = read_format(form, "text.format")
        names = ("input", "max_output_tokens")
        stream = flag_of(body, "stream")
        text = generation(self._reader, body, ids, limit, stream, tools, rule=rule, names=names)
        store = flag_of(body, "store", True)
        echoed = {
            "instructions": instructions,
            "max_output_tokens": limit,
            "metadata": _metadata(body.get("metadata")),
            "parallel_tool_calls": flag_of(body, "parallel_tool_calls", True),
            "previous_response_id": before,
            "store": store,
            "temperature": text.options.temperature,
            "text": {"format": form},
            "tool_choice": choice or "auto",
            "tools": [_shown(tool) for tool in read],
            "top_p": text.options.top_p,
        }
        return ResponseRequest(f"resp_{secrets.token_hex(24)}", text, messages, echoed, store)

    def _before(self, key: str | None) -> Sequence[Message]:
        if key is None:
            return ()
        stored = self._store.get(key)
        if stored is None:
            raise DogeExportError(
                f"previous_response_id is {key[:80]!r}, and no such response is kept here.",
                "Send the conversation as input.",
            )
        return stored.messages


def _definition(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise DogeExportError(f'{where} is not an object of the type "function", the only one there is.')
    return read_definition(tool, where, "parameters")


def _format(text: Any) -> Any:
    """What a response gives back as its format, too."""
    if text is None:
        return _ANY_TEXT
    check(text, _TEXT, "text")
    form = text.get("format")
    return _ANY_TEXT if form is None else form


def _shown(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "strict": tool.strict, **tool.definition["function"]}


def _metadata(value: Any) -> dict[str, str]:
    if value is not None and not (
        isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    ):
        raise DogeExportError("metadata is not an object of texts.")
    return value or {}


def _input(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DogeExportError("The request has no input, which is a text or a list of items.")
    messages: list[Message] = []
    for at, item in enumerate(value):
        _add(messages, item, f"input[{at}]")
    return messages


def _add(messages: list[Message], item: Any, where: str) -> None:
    """Put an item behind the others. Calls belong to the assistant's message before them."""
    if not isinstance(item, dict):
        raise DogeExportError(f"{where} is not an object.")
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item, where))
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(_call(item, where))
    elif kind == "function_call_output":
        key = name_of(item.get("call_id"), f"{where}.call_id")
        output = joined_text(item.get("output"))
        if output is None:
            raise DogeExportError(f"{where}.output is not a text.")
        messages.append({"role": "tool", "tool_call_id": key, "content": output})
    else:
        raise DogeExportError(
            f"{where}.type is {str(kind)[:60]!r}, and message, function_call and function_call_output are "
            "all that the model reads."
        )


def _message(item: Mapping[str, Any], where: str) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise DogeExportError(f"{where}.role is not one of {', '.join(_ROLES)}.")
    content = joined_text(item.get("content"))
    if content is None:
        raise DogeExportError(f"{where}.content is not a text or a list of texts.")
    return {"role": _ROLES[role], "content": content}


def _call(item: Mapping[str, Any], where: str) -> Message:
    name, key = name_of(item.get("name"), f"{where}.name"), name_of(item.get("call_id"), f"{where}.call_id")
    arguments = read_arguments(item.get("arguments"), f"{where}.arguments")
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}
