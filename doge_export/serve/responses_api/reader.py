"""The body of a request to /v1/responses, checked: a conversation, and the options of its answer."""

__all__ = ["COUNTED", "ITEM", "LABELS", "OFF", "TAKEN", "ResponseReader", "ResponseRequest"]

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.serve.constraints import read_format
from doge_export.serve.conversation import chat_ids, joined_text, read_arguments
from doge_export.serve.errors import shown
from doge_export.serve.fields import FIELDS, LARGEST
from doge_export.serve.requests import PASSED, RequestReader, TextRequest
from doge_export.serve.responses_api.store import MAX_BYTES, MAX_RESPONSES, ResponseStore
from doge_export.serve.schemas import object_of, optional
from doge_export.serve.tools import Tool, ToolUse, read_choice, read_definition, tool_use
from doge_export.serve.values import Off, Schema, check, missing, read_fields, wrong

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
#: What templates know as the role of instructions, whatever a client calls it.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT: Schema = {
    "type": "object",
    "properties": {
        "format": {"type": ["object", "null"]},
        "verbosity": {"type": ["string", "null"], "enum": ["medium", None]},
    },
    "additionalProperties": False,
}
_NAME: Schema = {"type": "string"}
_TEXTS: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": object_of({"text": _NAME})},
        {"type": "null"},
    ]
}
#: Any item of the input: fields that another kind of item has are looked at, too.
ITEM: Schema = object_of(
    {},
    type={"enum": ["message", "function_call", "function_call_output", None]},
    role={"enum": [*_ROLES, None]},
    content={**_TEXTS, "description": "Of a message."},
    call_id=optional("string", "Of a call and of what came of it."),
    name=optional("string", "The tool that was called."),
    arguments=optional("string", "A JSON object, as text."),
    output={**_TEXTS, "description": "What came of a call."},
)
_RESULT: Schema = {"type": "object", "required": ["call_id"], "properties": {"call_id": _NAME}}
_CALLED: Schema = {
    "type": "object",
    "required": ["name", "call_id"],
    "properties": {"name": _NAME, "call_id": _NAME},
}
_ANY_TEXT = {"type": "text"}
#: Fields -> their schemas.
TAKEN: Mapping[str, Schema] = {
    "instructions": {
        "type": "string",
        "description": "What the model is told first. Not kept for the next response.",
    },
    "previous_response_id": {
        "type": "string",
        "description": "The response after whose conversation the input comes.",
    },
    "store": {
        "type": "boolean",
        "description": f"Keep the response, which is so without it: the last {MAX_RESPONSES:,} that were "
        f"used, and {MAX_BYTES >> 20} MiB of them, in memory.",
    },
    "max_output_tokens": {
        "type": "integer",
        "minimum": 1,
        "maximum": LARGEST,
        "description": "The most new tokens.",
    },
    **{name: FIELDS[name].schema for name in PASSED},
    "stream": {"type": "boolean", "description": "Send the answer in pieces, as server-sent events."},
    "parallel_tool_calls": FIELDS["parallel_tool_calls"].schema,
    "metadata": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Texts of the client's own. The response gives them back.",
    },
}
#: Those of them that say what the prompt is, or are looked at beside it.
COUNTED: Mapping[str, Schema] = {
    name: TAKEN[name] for name in ("instructions", "previous_response_id", "parallel_tool_calls")
}
_OTHERS = ("input", "model", "text", "tool_choice", "tools", *LABELS)


@dataclass(frozen=True)
class ResponseRequest:
    """A request. `messages`: the conversation so far, without instructions. `echoed`: fields that the
    response gives back."""

    key: str
    text: TextRequest
    messages: tuple[Message, ...]
    echoed: Mapping[str, Any]
    store: bool


@dataclass(frozen=True)
class _Prompt:
    """What the model is shown: `messages`, without instructions, and `tools` in the format of its template,
    as `ids`; and the tools as they were sent."""

    ids: Sequence[int]
    messages: tuple[Message, ...]
    tools: ToolUse | None
    sent: Sequence[Tool]


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
        given = read_fields(body, TAKEN, _OTHERS, OFF)
        prompt = self._prompt(given)
        limit = int(given["max_output_tokens"]) if "max_output_tokens" in given else None
        form = _format(given.get("text"))
        rule = read_format(form, "text.format")
        names = ("input", "max_output_tokens")
        text = self._reader.answer(prompt.ids, given, limit, prompt.tools, names, rule)
        store = given.get("store", True)
        echoed = {
            "instructions": given.get("instructions"),
            "max_output_tokens": limit,
            "metadata": given.get("metadata", {}),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "previous_response_id": given.get("previous_response_id"),
            "store": store,
            "temperature": text.options.temperature,
            "text": {"format": form},
            "tool_choice": given.get("tool_choice") or "auto",
            "tools": [_shown(tool) for tool in prompt.sent],
            "top_p": text.options.top_p,
        }
        return ResponseRequest(f"resp_{secrets.token_hex(24)}", text, prompt.messages, echoed, store)

    def count(self, body: Any) -> int:
        """The number of tokens of the prompt that a decoded body of /v1/responses/input_tokens means.

        Raises:
            DogeExportError: as `read`.
        """
        given = read_fields(body, COUNTED, _OTHERS, OFF)
        read_format(_format(given.get("text")), "text.format")
        return len(self._prompt(given).ids)

    def _prompt(self, given: Mapping[str, Any]) -> _Prompt:
        instructions = given.get("instructions")
        messages = (*self._before(given.get("previous_response_id")), *_input(given.get("input")))
        listed = given.get("tools", [])
        check(listed, {"type": "array"}, "tools")
        read = [_definition(tool, f"tools[{at}]") for at, tool in enumerate(listed)]
        choice, parallel = read_choice(given.get("tool_choice")), given.get("parallel_tool_calls")
        tools = tool_use(self._tokenizer, read, choice, parallel)
        first = [] if instructions is None else [{"role": "system", "content": instructions}]
        ids = chat_ids(self._tokenizer, [*first, *messages], tools, field="input")
        return _Prompt(ids, messages, tools, read)

    def _before(self, key: str | None) -> Sequence[Message]:
        if key is None:
            return ()
        stored = self._store.get(key)
        if stored is None:
            raise wrong(
                "previous_response_id",
                f"previous_response_id is {shown(key)}, and no such response is kept here.",
                "Send the conversation as input.",
            )
        return stored.messages


def _definition(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise wrong(where, f'{where} is not an object of the type "function", the only one there is.')
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


def _input(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if value is None or value == []:
        raise missing("input")
    check(value, {"type": ["string", "array"]}, "input")
    messages: list[Message] = []
    for at, item in enumerate(value):
        _add(messages, item, f"input[{at}]")
    return messages


def _add(messages: list[Message], item: Any, where: str) -> None:
    """Put an item behind the others. Calls belong to the assistant's message before them."""
    check(item, {"type": "object"}, where)
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item, where))
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(_call(item, where))
    elif kind == "function_call_output":
        check(item, _RESULT, where)
        output = joined_text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    else:
        raise wrong(
            where,
            f"{where}.type is {shown(kind)}, and message, function_call and function_call_output are "
            "all that the model reads.",
        )
    check(item, ITEM, where)


def _message(item: Mapping[str, Any], where: str) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(where, f"{where}.role is not one of {', '.join(_ROLES)}.")
    content = joined_text(item.get("content"), f"{where}.content")
    return {"role": _ROLES[role], "content": content}


def _call(item: Mapping[str, Any], where: str) -> Message:
    check(item, _CALLED, where)
    arguments = read_arguments(item.get("arguments"), f"{where}.arguments")
    function = {"name": item["name"], "arguments": arguments}
    return {"id": item["call_id"], "type": "function", "function": function}
