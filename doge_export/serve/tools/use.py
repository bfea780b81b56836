"""The tools of a request, and which of them the model may or must call."""

__all__ = [
    "NAME",
    "Tool",
    "ToolChoice",
    "ToolUse",
    "read_choice",
    "read_definition",
    "read_tools",
    "tool_use",
]

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.errors import shown
from doge_export.serve.tools.formats import ToolFormat, format_of
from doge_export.serve.tools.parser import ToolParser
from doge_export.serve.values import wrong

#: What OpenAI and Anthropic let a tool be called.
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_CHOICES = ("auto", "none", "required")
_MODES = ("auto", "required")
_ANY = ""


@dataclass(frozen=True)
class Tool:
    """A tool. `definition`: as OpenAI's chat describes it. `parameters`: the schema of its arguments, None:
    it takes none. `strict`: no other arguments than those of the schema. `where`: its place in the request,
    with the name that its schema has there."""

    definition: Mapping[str, Any]
    parameters: Mapping[str, Any] | None
    strict: bool
    where: tuple[str, str]

    @property
    def name(self) -> str:
        """What the model calls it."""
        return str(self.definition["function"]["name"])

    def field(self, name: str = "") -> str:
        """One of its fields as a sentence names it, by default the schema."""
        return f"{self.where[0]}.{name or self.where[1]}"


@dataclass(frozen=True)
class ToolUse:
    """Tools that a model may call.

    `forced`: the name of the one that it must call, "" for any of them, None where it chooses. `one`: a
    single call is all.
    """

    form: ToolFormat
    tools: tuple[Tool, ...]
    forced: str | None = None
    one: bool = False

    @property
    def definitions(self) -> list[Mapping[str, Any]]:
        """What the chat template is shown."""
        return [tool.definition for tool in self.tools]

    @property
    def opening(self) -> str:
        """What the answer begins with, put into the model's mouth."""
        return "" if self.forced is None else self.form.opening(self.forced)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end the answer besides those of the request."""
        return (self.form.closes,) if self.one and self.form.closes else ()

    def parser(self) -> ToolParser:
        """A parser for one answer."""
        return ToolParser(self.form, [tool.name for tool in self.tools], self.one, self.opening)


@dataclass(frozen=True)
class ToolChoice:
    """What a request says of its tools. `kind`: "auto", "none", "required", or "named", of the tool `name`.
    `allowed`: the names of those that there are for this answer, None for all."""

    kind: str = "auto"
    name: Any = None
    allowed: tuple[str, ...] | None = None


def read_tools(body: Mapping[str, Any], tokenizer: Tokenizer) -> ToolUse | None:
    """The tools in a body of /v1/chat/completions; None where there are none, or the model is to call none.

    Raises:
        DogeExportError: a field is not as it must be, asks for what is not done here, or the model's chat
            template knows no tools.
    """
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise wrong("tools", "tools is no list.")
    read = [_definition(tool, f"tools[{at}]") for at, tool in enumerate(tools or ())]
    choice = read_choice(body.get("tool_choice"), "function")
    return tool_use(tokenizer, read, choice, body.get("parallel_tool_calls"))


def tool_use(
    tokenizer: Tokenizer, tools: Sequence[Tool], choice: ToolChoice, parallel: Any = None
) -> ToolUse | None:
    """Tools that were read by `read_definition`; None where there are none, or the model is to call none.
    `parallel` is the field `parallel_tool_calls`.

    Raises:
        DogeExportError: they do not go together, or the model's chat template knows no tools.
    """
    if parallel is not None and not isinstance(parallel, bool):
        raise wrong("parallel_tool_calls", f"parallel_tool_calls is {parallel!r}, not true or false.")
    if choice.kind in ("required", "named") and not tools:
        raise wrong("tool_choice", "tool_choice asks for a call, and the request has no tools.")
    for name in [choice.name] if choice.kind == "named" else choice.allowed or ():
        if name not in [tool.name for tool in tools]:
            raise wrong("tool_choice", f"tool_choice names {name!r}, which is none of the request's tools.")
    if choice.allowed is not None:
        tools = [tool for tool in tools if tool.name in choice.allowed]
    if not tools or choice.kind == "none":
        return None
    forced = {"required": _ANY, "named": choice.name}.get(choice.kind)
    # OpenAI's: of a tool that is named there is one call.
    one = parallel is False or choice.kind == "named"
    return ToolUse(format_of(tokenizer), tuple(tools), forced, one)


def read_definition(tool: Mapping[str, Any], where: str, parameters: str) -> Tool:
    """The tool of an object with `name`, `description`, `strict` and, under the name `parameters`, a JSON
    schema.

    Raises:
        DogeExportError: one of them is not as it must be.
    """
    name, description, schema = tool.get("name"), tool.get("description"), tool.get(parameters)
    if not isinstance(name, str) or re.match(NAME, name) is None or name.endswith("\n"):
        raise wrong(where, f"{where}.name is not of 1 to 64 letters, digits, - and _.")
    if description is not None and not isinstance(description, str):
        raise wrong(where, f"{where}.description is not a text.")
    if schema is not None and not isinstance(schema, dict):
        raise wrong(where, f"{where}.{parameters} is not a JSON schema, which is an object.")
    strict = tool.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise wrong(where, f"{where}.strict is {shown(strict)}, not true or false.")
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    # Templates read it without asking whether it is there.
    function["parameters"] = schema if schema is not None else {"type": "object", "properties": {}}
    return Tool({"type": "function", "function": function}, schema, bool(strict), (where, parameters))


def _definition(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise wrong(where, f'{where} is not an object of the type "function", the only one there is.')
    if not isinstance(tool.get("function"), dict):
        raise wrong(where, f"{where}.function is not an object.")
    return read_definition(tool["function"], f"{where}.function", "parameters")


def read_choice(choice: Any, inside: str = "") -> ToolChoice:
    """OpenAI's `tool_choice`. `inside`: the field of an object that names a tool in which the name is.

    Raises:
        DogeExportError: it is none.
    """
    if choice is None or choice in _CHOICES:
        return ToolChoice(choice or "auto")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        return _allowed(choice, inside)
    name = _named(choice, inside)
    if kind != "function" or not isinstance(name, str):
        raise wrong(
            "tool_choice",
            f"tool_choice is neither {', '.join(_CHOICES)} nor an object of the type function with its name, "
            "nor one of the type allowed_tools.",
        )
    return ToolChoice("named", name)


def _allowed(choice: Mapping[str, Any], inside: str) -> ToolChoice:
    where, given = "tool_choice", choice
    if inside:
        where, given = "tool_choice.allowed_tools", choice.get("allowed_tools", {})
    mode = given.get("mode") if isinstance(given, dict) else None
    tools = given.get("tools") if isinstance(given, dict) else None
    if not isinstance(mode, str) or mode not in _MODES:
        raise wrong("tool_choice", f"{where}.mode is {shown(mode)}, not {' or '.join(_MODES)}.")
    if not isinstance(tools, list) or not tools:
        raise wrong("tool_choice", f"{where}.tools is not a list of tools.")
    names = [_named(tool, inside) for tool in tools]
    for at, (tool, name) in enumerate(zip(tools, names, strict=True)):
        if not isinstance(name, str) or tool.get("type") != "function":
            raise wrong("tool_choice", f"{where}.tools[{at}] is not of the type function with its name.")
    return ToolChoice(mode, allowed=tuple(names))


def _named(value: Any, inside: str) -> Any:
    """The name in an object that names a tool, if it is one."""
    if inside and isinstance(value, dict):
        value = value.get(inside)
    return value.get("name") if isinstance(value, dict) else None
