"""Answers that are held to tools: which texts the rules let a model write, and what it writes then."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.errors import FieldError
from doge_export.serve.messages_api.reader import MessagesReader
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.responses_api.reader import ResponseReader
from doge_export.serve.responses_api.store import ResponseStore
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._scripted import HERMES

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/short"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"short": {"type": "string", "maxLength": 6}},
}
USER = {"role": "user", "content": "a"}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, **({} if parameters is None else {"parameters": parameters}), **more}
    return {"type": "function", "function": function}


WEATHER, TIME = tool("weather", SCHEMA), tool("time")
STRICT = tool("weather", SCHEMA, strict=True)
NAMED = {"type": "function", "function": {"name": "weather"}}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [{"yes": True}]}}}
GOOD = '{"city": "Bern", "days": 3}'
CALL = '<tool_call>\n{"name": "weather", "arguments": ' + GOOD + "}\n</tool_call>"
LLAMA = HERMES.replace('Write <tool_call>{"name": ..., "arguments": ...}</tool_call>', "").replace(
    '<tool_call>{"name"', '{"name": function name, "parameters": ...}{"name"'
)


def reader_of(folder: Path, template: str, **tokens: Any) -> RequestReader:
    bundle = write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})
    (folder / "chat_template.jinja").write_text(template)
    if tokens:
        described = json.loads((folder / "tokenizer.json").read_text())
        known = described["added_tokens"]
        known += [dict(known[0], content=name, id=at) for name, at in tokens["special"].items()]
        for name, at in tokens["special"].items():
            old = next(text for text, number in described["model"]["vocab"].items() if number == at)
            described["model"]["vocab"] = {
                name if text == old else text: number for text, number in described["model"]["vocab"].items()
            }
        (folder / "tokenizer.json").write_text(json.dumps(described))
    return RequestReader(bundle, Tokenizer.load(folder), "toy")


@pytest.fixture(autouse=True)
def _known_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no trial in a process of their own, which takes its time."""
    monkeypatch.setattr("doge_export.runtime.constraints.check_trial", lambda *_: None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> RequestReader:
    return reader_of(tmp_path_factory.mktemp("llama") / "toy", LLAMA)


def chat(reader: RequestReader, **body: Any) -> TextRequest:
    return reader.read({"messages": [USER], "tools": [WEATHER, TIME], **body}, chat=True)


def verdict(reader: RequestReader, request: TextRequest, text: str) -> str:
    """What the rules say of a text behind the prompt: "whole", where it ends; "may end"; "part", where more
    must come; or "no"."""
    constraints = request.constraints()
    assert constraints is not None
    rules = constraints[0]
    for token in reader._tokenizer.encode(text, add_special_tokens=False):
        if not rules.allowed().view("uint8")[token // 8] >> token % 8 & 1:
            return "no"
        rules.accept(token)
    if rules.ended:
        return "whole"
    return "may end" if rules.allowed().view("uint8")[EOS // 8] >> EOS % 8 & 1 else "part"


REST = ' "weather", "arguments": ' + GOOD + "}"  # behind <tool_call>\n{"name":
HERMES_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "required"}, f"{REST}\n</tool_call>", "may end"),
    ({"tool_choice": "required"}, f"{REST}</tool_call>\n{CALL}", "may end"),
    ({"tool_choice": "required"}, REST, "part"),
    ({"tool_choice": "required"}, ' "time", "arguments": {}}</tool_call>', "may end"),
    ({"tool_choice": "required"}, ' "time", "arguments": {"a": 1}}', "no"),
    ({"tool_choice": "required"}, ' "other"', "no"),
    ({"tool_choice": "required"}, "I would", "no"),
    ({"tool_choice": "required"}, ' "weather", "arguments": {"city": "Bern"}}', "no"),
    ({"tool_choice": "required"}, f"{REST}\n</tool_call> so", "no"),
    ({"tool_choice": "required", "parallel_tool_calls": False}, f"{REST}\n</tool_call>", "whole"),
    ({"tool_choice": NAMED}, f" {GOOD}}}\n</tool_call>", "whole"),
    ({"tool_choice": NAMED}, ' "time"', "no"),
    ({"tool_choice": "required", "response_format": JSON}, f"{REST}\n</tool_call>", "may end"),
    ({"response_format": JSON}, '{"yes": true}', "whole"),
    ({"response_format": JSON}, CALL, "may end"),
    ({"response_format": JSON}, f"{CALL}\n{CALL}", "may end"),
    ({"response_format": JSON, "parallel_tool_calls": False}, CALL, "whole"),
    ({"response_format": JSON}, "I would", "no"),
    ({"response_format": JSON}, f'{CALL}{{"yes": true}}', "no"),
    ({"guided_regex": "[ab]+"}, "abba", "may end"),
    ({"guided_regex": "[ab]+"}, CALL, "may end"),
    ({"guided_choice": ["left", "right"]}, "left", "whole"),
    ({"guided_grammar": 'start: "x"~3'}, "xxx", "whole"),
    ({"tools": [STRICT]}, "I look.", "may end"),
    ({"tools": [STRICT]}, f"I look.\n{CALL}", "may end"),
    ({"tools": [STRICT]}, f'<tool_call>[{CALL[12:-13]}, {CALL[12:-13]}]</tool_call>', "may end"),
    ({"tools": [STRICT], "parallel_tool_calls": False}, f"a {CALL}", "whole"),
    ({"tools": [STRICT]}, '<tool_call>\n{"name": "weather", "arguments": {"days"', "no"),
    ({"tools": [STRICT]}, "<tool_call> is a tag", "no"),
    ({"tools": [STRICT, TIME]}, '<tool_call>{"name": "time", "arguments": {}}</tool_call>', "may end"),
]  # fmt: skip
BARE = '{"name": "weather", "parameters": ' + GOOD + "}"
LLAMA_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "required"}, BARE[8:], "whole"),
    ({"tool_choice": "required"}, ' "other"', "no"),
    ({"tool_choice": NAMED}, f" {GOOD}}}", "whole"),
    ({"tools": [STRICT]}, " I would {", "may end"),
    ({"tools": [STRICT]}, BARE, "whole"),
    ({"tools": [STRICT]}, '{"names', "no"),
    ({"tools": [STRICT]}, ' {"name', "no"),
    ({"response_format": {"type": "json_object"}}, '{"names": 1}', "whole"),
    ({"response_format": {"type": "json_object"}}, BARE, "whole"),
    ({"response_format": {"type": "json_object"}}, "I", "no"),
]


@pytest.mark.parametrize(("options", "text", "said"), HERMES_CASES, ids=map(str, range(len(HERMES_CASES))))
def test_what_hermes_may_write(reader: RequestReader, options: dict[str, Any], text: str, said: str) -> None:
    assert verdict(reader, chat(reader, **options), text) == said


@pytest.mark.parametrize(("options", "text", "said"), LLAMA_CASES, ids=map(str, range(len(LLAMA_CASES))))
def test_what_llama_may_write(llama: RequestReader, options: dict[str, Any], text: str, said: str) -> None:
    assert verdict(llama, chat(llama, **options), text) == said


def test_nothing_is_held_where_nothing_is_asked(reader: RequestReader) -> None:
    assert chat(reader).rules is None
    assert chat(reader, response_format={"type": "text"}, parallel_tool_calls=False).rules is None
    held = chat(reader, tool_choice="none", response_format=JSON)
    assert verdict(reader, held, '{"yes": true}') == "whole" and verdict(reader, held, CALL) == "no"


def test_the_other_apis_hold_a_model_too(reader: RequestReader) -> None:
    messages: dict[str, Any] = {"max_tokens": 9, "messages": [USER]}
    messages["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
    responses: dict[str, Any] = {"input": "a", "tools": [{"type": "function", **STRICT["function"]}]}
    ours = MessagesReader(reader, reader._tokenizer)
    theirs = ResponseReader(reader, reader._tokenizer, ResponseStore())

    def message(**more: Any) -> TextRequest:
        return ours.read(messages | more).text

    def response(**more: Any) -> TextRequest:
        return theirs.read(responses | more).text

    one = {"type": "any", "disable_parallel_tool_use": True}
    named = {"type": "tool", "name": "weather"}
    assert verdict(reader, message(tool_choice={"type": "any"}), f"{REST}\n</tool_call>") == "may end"
    assert verdict(reader, message(tool_choice=one), f"{REST}\n</tool_call>") == "whole"
    assert verdict(reader, message(tool_choice=named), f" {GOOD}}}\n</tool_call>") == "whole"
    assert verdict(reader, message(tool_choice=named), "I") == "no" and message().rules is None
    strict = message(tools=[messages["tools"][0] | {"strict": True}])
    assert verdict(reader, strict, CALL) == "may end" and verdict(reader, strict, "<tool_call>a") == "no"
    assert verdict(reader, response(), CALL) == "may end" and verdict(reader, response(), "a") == "may end"
    assert verdict(reader, response(tool_choice="required"), "I") == "no"
    assert theirs.read(responses).echoed["tools"][0]["strict"] is True


def test_what_is_written_is_a_call(tiny: openai.OpenAI) -> None:
    """A model that has never seen a tool, and draws from all of its tokens."""
    given: Any = {"model": "tiny", "messages": [USER], "tools": [STRICT, TIME], "max_tokens": 120}
    given |= {"temperature": 1.5, "seed": 3, "n": 6, "tool_choice": "required", "parallel_tool_calls": False}
    calls: list[list[tuple[str, str]]] = []
    for choice in tiny.chat.completions.create(**given).choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        calls.append([(call.function.name, call.function.arguments)])
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        else:
            assert calls[-1] == [("time", "{}")]
    streamed: list[list[tuple[str, str]]] = [[] for _ in calls]
    for chunk in tiny.chat.completions.create(**given, stream=True):
        for part in chunk.choices:
            assert not part.delta.content
            for call in part.delta.tool_calls or []:
                streamed[part.index].append((call.function.name, call.function.arguments))
    assert streamed == calls


def test_what_is_written_is_a_text_of_the_rules_or_a_call(tiny: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "messages": [USER], "tools": [STRICT], "max_tokens": 120}
    given |= {"temperature": 1.5, "seed": 3, "n": 6, "parallel_tool_calls": False, "response_format": JSON}
    for choice in tiny.chat.completions.create(**given).choices:
        if choice.message.tool_calls:
            jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), SCHEMA)
        else:
            assert json.loads(choice.message.content) == {"yes": True} and choice.finish_reason == "stop"


NOT: dict[str, Any] = {"type": "object", "properties": {"a": {"not": {}}}}


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        (
            {"tools": [TIME, tool("f", NOT, strict=True)]},
            "tools",
            "tools[1].function.parameters cannot be kept: Unimplemented keys",
        ),
        (
            {"tools": [TIME, tool("f", {"type": "array"})], "tool_choice": "required"},
            "tools",
            "tools[1].function.parameters is no schema of an object",
        ),
        ({"tools": [tool("f", {"type": 3}, strict=True)]}, "tools", "is no schema of an object"),
        ({"response_format": {"type": "json_object", "schema": NOT}}, "response_format",
         "response_format.schema cannot be kept"),
        ({"tools": [tool("f", strict=1)]}, "tools", "tools[0].function.strict is 1, not true or false"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_name(
    reader: RequestReader, body: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(FieldError) as raised:
        chat(reader, **body)
    assert raised.value.field == field and sentence in str(raised.value)


def test_without_strict_a_schema_is_kept_as_far_as_it_can_be(reader: RequestReader) -> None:
    schema = NOT | {"required": ["a"], "additionalProperties": False}
    request = chat(reader, tools=[tool("f", schema)], tool_choice="required")
    assert verdict(reader, request, ' "f", "arguments": {"a": 3}}</tool_call>') == "may end"
    assert verdict(reader, request, ' "f", "arguments": {}') == "no"


def test_calls_of_special_tokens(tmp_path: Path) -> None:
    special = {"<tool_call>": 40, "</tool_call>": 41}
    reader = reader_of(tmp_path / "toy", HERMES, special=special)
    request = chat(reader, tool_choice="required")
    assert special["<tool_call>"] in request.prompts[0]
    assert verdict(reader, request, REST) == "whole", "a text ends in the place of the token"
    with pytest.raises(FieldError, match=r"response_format.* cannot be kept: .*the token <tool_call>"):
        chat(reader, response_format=JSON)
    with pytest.raises(FieldError, match=r"tools\[0\].function.strict cannot be kept"):
        chat(reader, tools=[STRICT])


def test_rules_that_a_tokenizer_cannot_have_name_the_field(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(scripted.path)
    monkeypatch.setattr(tokenizer.pieces, "exact", False)
    with pytest.raises(FieldError, match=r"tool_choice cannot be kept\. Rules for a text need a tokenizer"):
        chat(RequestReader(scripted, tokenizer, "toy"), tool_choice="required")
