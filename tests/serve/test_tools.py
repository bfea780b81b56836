"""Tools of /v1/chat/completions: what the template is shown, and what a client gets of the model's text."""

import json
from typing import Any

import openai
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import write_toy_bundle
from tests.serve._running import Running
from tests.serve._scripted import BERN, call, filler

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RequestReader:
    bundle = write_toy_bundle(tmp_path_factory.mktemp("plain") / "toy")
    return RequestReader(bundle, Tokenizer.load(bundle.path), "toy")


def prompt(reader: RequestReader, **body: Any) -> str:
    """What the model is shown."""
    body = {"messages": [{"role": "user", "content": ""}], **body}
    (ids,) = reader.read(body, chat=True).prompts
    return reader._tokenizer.decode(ids, skip_special_tokens=False)


def ask(running: Running, reader: RequestReader, script: int, **options: Any) -> tuple[Any, list[Any]]:
    """The choice of a whole answer, and the chunks of the same one streamed."""
    text = filler(reader._tokenizer, script, prompt(reader, **options))
    messages = [{"role": "user", "content": text}]
    given: Any = {"model": "toy", "messages": messages, "max_tokens": 300, **options}
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        (choice,) = client.chat.completions.create(**given).choices
        return choice, [part.choices[0] for part in client.chat.completions.create(**given, stream=True)]


def streamed(chunks: list[Any]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls, put together as clients do."""
    content, calls = "", {}
    for chunk in chunks:
        content += chunk.delta.content or ""
        for part in chunk.delta.tool_calls or []:
            name, arguments = calls.get(part.index, ("", ""))
            calls[part.index] = (name + (part.function.name or ""), arguments + part.function.arguments)
    return content, [calls[at] for at in sorted(calls)]


def test_calls_come_with_their_text(server: Running, reader: RequestReader) -> None:
    choice, chunks = ask(server, reader, 0, tools=[WEATHER, TIME])
    assert choice.message.content == "I look." and choice.finish_reason == "tool_calls"
    first, second = choice.message.tool_calls
    assert (first.function.name, json.loads(first.function.arguments)) == ("weather", BERN)
    assert (second.function.name, second.function.arguments) == ("time", "{}")
    assert first.id.startswith("call_") and first.id != second.id
    assert streamed(chunks) == ("I look.", [("weather", first.function.arguments), ("time", "{}")])
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]
    assert chunks[0].delta.role == "assistant" and len(chunks) > 3


def test_one_call_ends_an_answer_where_no_more_are_wanted(server: Running, reader: RequestReader) -> None:
    choice, chunks = ask(server, reader, 0, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert [each.function.name for each in choice.message.tool_calls] == ["weather"]
    assert streamed(chunks)[1] == [("weather", choice.message.tool_calls[0].function.arguments)]


def test_without_a_call_the_answer_is_text(server: Running, reader: RequestReader) -> None:
    choice, chunks = ask(server, reader, 1, tools=[WEATHER])
    assert (choice.message.content, choice.message.tool_calls) == ("No call.", None)
    assert choice.finish_reason == "stop" and streamed(chunks) == ("No call.", [])
    choice, _ = ask(server, reader, 0, tools=[WEATHER], tool_choice="none")
    assert choice.message.content == f"I look.\n{call('weather', BERN)}\n{call('time', {})}"


def test_a_tool_that_must_be_called_begins_the_answer(server: Running, reader: RequestReader) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    choice, chunks = ask(server, reader, 2, tools=[TIME, WEATHER], tool_choice=named)
    (made,) = choice.message.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("weather", BERN)
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    assert streamed(chunks) == ("", [("weather", made.function.arguments)])
    # It would write something else.
    one = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False}
    choice, chunks = ask(server, reader, 3, **one)
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    assert streamed(chunks) == ("", [("time", "{}")])
    assert [made.function.name for made in choice.message.tool_calls] == ["time"]


def test_the_template_is_shown_tools_and_calls(reader: RequestReader) -> None:
    assert f"[tools] {json.dumps(WEATHER)}" in prompt(reader, tools=[WEATHER])
    for off in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "auto"}):
        assert prompt(reader, **off) == "<bos>[user] \n[assistant] "
    made = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"a": "é"}'}}
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]},
    ]
    assert prompt(reader, messages=messages) == (
        '<bos>[user] When?\n[assistant] <tool_call>{"name": "time", "arguments": {"a": "é"}}</tool_call>\n'
        "[tool] noon\n[assistant] "
    )


def _tools(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def _called(**changes: Any) -> dict[str, Any]:
    made = {"function": {"name": "f", "arguments": "{}"}} | changes
    return {"messages": [{"role": "assistant", "tool_calls": [made]}]}


def _allowed(*names: Any, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": {}}, "tools is no list"),
    ({"tools": [3]}, r"tools\[0\] is not an object of the type"),
    ({"tools": [TIME, {"type": "custom"}]}, r"tools\[1\] is not an object of the type"),
    ({"tools": [{"type": "function"}]}, r"tools\[0\].function is not an object"),
    (_tools(name="a b"), r"tools\[0\].function.name"),
    (_tools(name="a\n"), r"tools\[0\].function.name"),
    (_tools(description=3), r"tools\[0\].function.description"),
    (_tools(parameters=[]), r"tools\[0\].function.parameters"),
    (_tools(strict="yes"), r'tools\[0\].function.strict is "yes", not true or false'),
    ({"tool_choice": "required"}, "tool_choice asks for a call"),
    (_tools() | {"tool_choice": "any"}, "tool_choice is neither auto"),
    (_tools() | {"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice names 'g'"),
    (_tools() | {"tool_choice": {"type": "allowed_tools"}}, r"tool_choice.allowed_tools.mode is null"),
    (_tools() | _allowed("f", "g"), "tool_choice names 'g'"),
    (_tools() | _allowed("f", mode="none"), r'allowed_tools.mode is "none", not auto or required'),
    (_tools() | _allowed(), r"tool_choice.allowed_tools.tools is not a list of tools"),
    (_tools() | _allowed(3), r"allowed_tools.tools\[0\] is not of the type function"),
    (_allowed("f"), "tool_choice names 'f'"),
    (_tools() | {"parallel_tool_calls": 1}, "parallel_tool_calls is 1"),
    (_called(function={}), r"messages\[0\].tool_calls\[0\].function.name is missing"),
    (_called(function={"name": "f", "arguments": "[1]"}), r"tool_calls\[0\].function.arguments is not"),
    (_called(function={"name": "f", "arguments": {}}), r"tool_calls\[0\].function.arguments is an object"),
    (
        {"messages": [{"role": "assistant", "tool_calls": 3}]},
        "tool_calls is 3, not a list of objects",
    ),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": 3}]}, r"messages\[0\].tool_call_id"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "no content"),
]


def test_only_allowed_tools_are_there(server: Running, reader: RequestReader) -> None:
    both: dict[str, Any] = {"tools": [TIME, WEATHER]}
    assert prompt(reader, **both, **_allowed("weather")) == prompt(reader, tools=[WEATHER])
    assert prompt(reader, **both, **_allowed("weather", "time")) == prompt(reader, **both)
    some = {"tools": [TIME], "tool_choice": "required"}
    assert prompt(reader, **both, **_allowed("time", mode="required")) == prompt(reader, **some)
    choice, _ = ask(server, reader, 0, **both, **_allowed("weather"))
    assert [each.function.name for each in choice.message.tool_calls] == ["weather"], "the other is text"


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_wrong_gets_a_sentence(reader: RequestReader, body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        prompt(reader, **body)


def test_a_template_without_tools_refuses_them(plain: RequestReader) -> None:
    with pytest.raises(DogeExportError, match=r'its chat template has none\. .* tool_choice "none"'):
        prompt(plain, tools=[TIME])
    assert prompt(plain, tools=[TIME], tool_choice="none") == prompt(plain)
    with pytest.raises(DogeExportError, match="Message 0 has calls of tools"):
        prompt(plain, **_called())
