"""Calls of tools in a text: found whatever pieces it comes in, and only where they are calls."""

import sys
from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.tools.formats import FORMATS, format_of
from doge_export.serve.tools.parser import Call, ToolParser
from tests.serve._scripted import HERMES as HERMES_TEMPLATE

HERMES, LLAMA = FORMATS
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
LAST = sys.float_info.max
LLAMA_ADD = '{"name": "add", "parameters": {"a": 1}}'

#: Format, text -> what is in it.
TEXTS: list[tuple[Any, str, list[Any]]] = [
    (HERMES, "no call ", ["no call "]),
    (HERMES, " \n", [" \n"]),
    (HERMES, ADD, [("add", {"a": 1})]),
    (HERMES, f"I add.\n{ADD}\n", ["I add.", ("add", {"a": 1})]),
    (HERMES, f"{ADD}\n{ADD} so", [("add", {"a": 1}), ("add", {"a": 1}), "so"]),
    (HERMES, ADD.removesuffix("</tool_call>"), [("add", {"a": 1})]),
    (HERMES, '<tool_call>[{"name": "add"}, {"name": "sub", "arguments": {}}]</tool_call>',
     [("add", {}), ("sub", {})]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call>',
     [("add", {"a": "</tool_call>"})]),
    (HERMES, '<tool_call>{"name": "other"}</tool_call> x', ['<tool_call>{"name": "other"}</tool_call> x']),
    (HERMES, "<tool_call>{not JSON}</tool_call>", ["<tool_call>{not JSON}</tool_call>"]),
    (HERMES, "<tool_call>", ["<tool_call>"]),
    (HERMES, "a <tool_ call> <tool", ["a <tool_ call> <tool"]),
    (HERMES, '<tool_call>{"name": ["add"]}</tool_call>', ['<tool_call>{"name": ["add"]}</tool_call>']),
    (HERMES, '<tool_call>{"name": "add", "arguments": 3}</tool_call>',
     ['<tool_call>{"name": "add", "arguments": 3}</tool_call>']),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
     ['<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>']),
    (HERMES, f'<tool_call>{{"name": "add", "arguments": {{"a": [1e999, -2E400, {"9" * 5000}]}}}}</tool_call>',
     [("add", {"a": [LAST, -LAST, LAST]})]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>',
     ['<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>']),
    (HERMES, f"<tool_call>{'[' * 5000}</tool_call>", [f"<tool_call>{'[' * 5000}</tool_call>"]),
    (LLAMA, LLAMA_ADD, [("add", {"a": 1})]),
    (LLAMA, f"\n{LLAMA_ADD}; {LLAMA_ADD}\n", [("add", {"a": 1}), ("add", {"a": 1})]),
    (LLAMA, f"Text {LLAMA_ADD}", [f"Text {LLAMA_ADD}"]),
    (LLAMA, f"{LLAMA_ADD} and text", [f"{LLAMA_ADD} and text"]),
    (LLAMA, '{"a": 1}\n', ['{"a": 1}\n']),
]  # fmt: skip


def parsed(parser: ToolParser, pieces: list[str]) -> list[Any]:
    """Texts, neighbours joined, and calls as pairs."""
    found: list[Any] = []
    for part in [part for piece in pieces for part in parser.push(piece)] + parser.end():
        if isinstance(part, Call):
            found.append((part.name, part.arguments))
        elif found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
@pytest.mark.parametrize(("form", "text", "expected"), TEXTS, ids=map(str, range(len(TEXTS))))
def test_calls_are_found_in_any_pieces(form: Any, text: str, expected: list[Any], size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert parsed(ToolParser(form, ["add", "sub"]), pieces) == expected


def test_text_before_a_call_is_not_held_back() -> None:
    parser = ToolParser(HERMES, ["add"])
    assert parser.push("It is <b") == ["It is <b"]
    assert parser.push(" or <tool") == [" or"]
    assert parser.push("s>") == [" <tools>"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("tool", ["add", ""])
def test_an_opening_is_the_beginning_of_a_call(form: Any, tool: str) -> None:
    opening = form.opening(tool)
    rest = ' {"a": 1}}' if tool else f' "add", "{form.arguments}": {{"a": 1}}}}'
    parser = ToolParser(form, ["add"], opening=opening)
    assert parsed(parser, [rest + form.closes]) == [("add", {"a": 1})]
    assert parsed(ToolParser(form, ["add"], opening=opening), ["~"]) == [f"{opening}~"]


def test_one_call_is_all() -> None:
    assert parsed(ToolParser(HERMES, ["add"], one=True), [ADD, f"and {ADD}{ADD}"]) == [("add", {"a": 1})]
    two = f"{LLAMA_ADD};{LLAMA_ADD}"
    assert parsed(ToolParser(LLAMA, ["add"], one=True), [two]) == [("add", {"a": 1})]


LLAMA_TEMPLATE = (
    "{% if tools is not none %}Say {" + '"name": function name, "parameters": its values}{% endif %}'
)


def templated(**templates: str) -> Tokenizer:
    return Tokenizer(None, {}, templates)  # type: ignore[arg-type]


#: Format -> what templates that people have say of it.
SIGNS = {
    HERMES: [
        r"{{ 'within XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args>}' }}",
        '<tool_call>[\n{"name": "one", "arguments": {}},\n]</tool_call>',
        '<tool_call>\n{"arguments": <args-dict>, "name": <function-name>}\n</tool_call>',
    ],
    LLAMA: ["""{{- 'in the format {"name": function name, "parameters": dictionary}.' }}"""],
}


@pytest.mark.parametrize(("form", "sign"), [(form, sign) for form, signs in SIGNS.items() for sign in signs])
def test_a_format_is_known_by_its_sign(form: Any, sign: str) -> None:
    assert format_of(templated(default="{{ tools }}" + sign)) is form


def test_the_format_is_that_of_the_template() -> None:
    assert format_of(templated(default=HERMES_TEMPLATE)) is HERMES
    assert format_of(templated(default=LLAMA_TEMPLATE)) is LLAMA
    assert format_of(templated(default="", tool_use=HERMES_TEMPLATE)) is HERMES


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ messages }}", "tools cannot be shown to this model"),
        ("{# tools, as <tool_call> #}{{ messages }}", "tools cannot be shown to this model"),
        ("{{ tools }}<tool_call>\n<function=f>", "another format than Hermes and Llama 3"),
        ("{{ tools }}[CALLS]", "another format than Hermes and Llama 3"),
        ("{{ tools ", "is damaged"),
    ],
)
def test_a_template_without_tools_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        format_of(templated(default=template))
