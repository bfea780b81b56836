"""/v1/messages: asked by Anthropic's own client, and by hand."""

import json
from collections.abc import Generator
from typing import Any

import anthropic
import pytest

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event
from doge_export.serve.messages_api.answer import MessageAnswer
from doge_export.serve.messages_api.reader import MessagesReader
from doge_export.serve.requests import RequestReader
from doge_export.serve.service import Ended
from tests.runtime._toy import EOS, continued
from tests.serve._described import SCHEMAS, VALUES, disagreements, fits
from tests.serve._running import Running
from tests.serve._scripted import BERN, filler

WEATHER: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object"}}
TIME: dict[str, Any] = {"name": "time", "input_schema": {"type": "object"}}
USER: dict[str, Any] = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def client(server: Running) -> Generator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(reader: RequestReader) -> Tokenizer:
    return reader._tokenizer


@pytest.fixture(scope="module")
def ours(reader: RequestReader, tokenizer: Tokenizer) -> MessagesReader:
    return MessagesReader(reader, tokenizer)


@pytest.fixture(scope="module")
def counter(reader: RequestReader, tokenizer: Tokenizer) -> MessagesReader:
    return MessagesReader(reader, tokenizer, counting=True)


def text_after(tokenizer: Tokenizer, prompt: str, count: int) -> str:
    new = continued(tokenizer.encode(prompt, add_special_tokens=False), count)
    return tokenizer.decode(new[: new.index(EOS)] if EOS in new else new)


def shown(ours: MessagesReader, **body: Any) -> str:
    """What the model is shown."""
    request: Any = ours.read({"max_tokens": 9, "messages": [USER | {"content": ""}], **body})
    return ours.tokenizer.decode(request.text.prompts[0], skip_special_tokens=False)


def test_a_message_whole_and_streamed(client: anthropic.Anthropic, tokenizer: Tokenizer) -> None:
    prompt = "<bos>[system] be brief\n[user] the cat\n[assistant] "
    expected = text_after(tokenizer, prompt, 7)
    given: Any = {
        "model": "toy",
        "max_tokens": 7,
        "system": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}],
    }
    whole = client.messages.create(**given)
    assert [(block.type, block.text) for block in whole.content] == [("text", expected)]
    assert (whole.role, whole.stop_reason, whole.stop_sequence) == ("assistant", "max_tokens", None)
    count = len(tokenizer.encode(prompt, add_special_tokens=False))
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (count, 7)
    events: list[Any] = list(client.messages.create(**given, stream=True))
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == expected
    # The client leaves out pings.
    assert [event.type for event in events] == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * len(deltas),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert events[0].message.usage.input_tokens == count and events[0].message.content == []
    assert events[-2].delta.stop_reason == "max_tokens" and events[-2].usage.output_tokens == 7
    with client.messages.stream(**given) as stream:
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason, final.usage) == (expected, "max_tokens", whole.usage)
    del given["max_tokens"]
    assert client.messages.count_tokens(**given).input_tokens == count


def test_every_event_is_named_by_its_type(server: Running) -> None:
    body = {"max_tokens": 3, "messages": [USER], "stream": True}
    _, text = server.post("/v1/messages", body)
    named = [event.split("\n") for event in text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in named]
    assert [name.removeprefix("event: ") for name, _ in named] == [event["type"] for event in events]
    assert [event["type"] for event in events][:2] == ["message_start", "ping"]
    assert [event for event in events if not fits(event, SCHEMAS["MessagesEvent"])] == []


@pytest.mark.parametrize("settings", [{"top_k": 1, "temperature": 0.9}, {"top_p": 0, "temperature": 2}])
def test_settings_that_the_client_has_no_more(server: Running, tokenizer: Tokenizer, settings: Any) -> None:
    """With them only the likeliest token is left, though tokens are drawn."""
    body = {"max_tokens": 7, "messages": [USER], **settings}
    (block,) = server.post("/v1/messages", body)[1]["content"]
    assert block["text"] == text_after(tokenizer, "<bos>[user] a\n[assistant] ", 7)


def test_a_stop_sequence_is_named(client: anthropic.Anthropic, tokenizer: Tokenizer) -> None:
    text = filler(tokenizer, 1, "<bos>[user] \n[assistant] ")
    given: Any = {"model": "toy", "max_tokens": 50, "messages": [{"role": "user", "content": text}]}
    answer = client.messages.create(**given, stop_sequences=["zzz", "all", " ca"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " ca")
    assert answer.content[0].text == "No"
    answer = client.messages.create(**given, stop_sequences=["N"])
    assert (answer.stop_reason, answer.stop_sequence, answer.content) == ("stop_sequence", "N", [])
    answer = client.messages.create(**given, stop_sequences=["zzz"])
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.content[0].text == "No call."
    with client.messages.stream(**given, stop_sequences=["call"]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence, final.content[0].text) == ("stop_sequence", "call", "No ")


def ended_by(ours: MessagesReader, prompt: str, texts: list[str], stops: list[str]) -> Any:
    """The stop sequence of an answer whose tokens are `texts`."""
    messages = [USER, {"role": "assistant", "content": prompt}]
    request: Any = ours.read({"max_tokens": 9, "messages": messages, "stop_sequences": stops})
    answer = MessageAnswer(request, "toy", ours.tokenizer)
    ids = [token for text in texts for token in ours.tokenizer.encode(text, add_special_tokens=False)]
    answer.add([Event(0, token, "", None) for token in ids[:-1]])
    answer.add([Event(0, ids[-1], "", "stop")])
    return answer.whole()["stop_sequence"]


def test_the_stop_sequence_is_the_one_that_begins_first(ours: MessagesReader) -> None:
    assert ended_by(ours, "", ["x", "y", "z"], ["yz", "xyz", "z"]) == "xyz"
    assert ended_by(ours, "q", ["x", "y"], ["y", "qxy"]) == "qxy", "it may begin in the prompt"
    assert ended_by(ours, "", ["é"], ["é"]) == "é"
    assert ended_by(ours, "", ["a", "b", "a", "b"], ["ab"]) == "ab"
    assert ended_by(ours, "", ["a", "b", "c"], ["ab"]) is None, "another one ended it"


def test_an_answer_that_was_begun_goes_on(client: anthropic.Anthropic, tokenizer: Tokenizer) -> None:
    messages: Any = [USER, {"role": "assistant", "content": "the dog"}]
    answer = client.messages.create(model="toy", max_tokens=6, messages=messages)
    assert answer.content[0].text == text_after(tokenizer, "<bos>[user] a\n[assistant] the dog", 6)


def test_calls_of_tools(client: anthropic.Anthropic, ours: MessagesReader) -> None:
    tools: Any = [WEATHER, TIME]
    text = filler(ours.tokenizer, 0, shown(ours, tools=tools))
    given: Any = {"model": "toy", "max_tokens": 300, "tools": tools}
    given["messages"] = [{"role": "user", "content": text}]
    whole = client.messages.create(**given)
    said, weather, time = whole.content
    assert (said.text, whole.stop_reason) == ("I look.", "tool_use")
    assert (weather.name, weather.input, time.name, time.input) == ("weather", BERN, "time", {})
    with client.messages.stream(**given) as stream:
        final = stream.get_final_message()
    made = [(block.name, block.input) for block in final.content[1:]]
    assert made == [("weather", BERN), ("time", {})] and final.stop_reason == "tool_use"
    one = client.messages.create(**given, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["text", "tool_use"] and one.stop_reason == "tool_use"


def test_the_template_is_shown_the_blocks(ours: MessagesReader) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "time", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "noon"}]}
    text = {"type": "text", "text": "so", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, text]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_2"}]},
    ]
    assert shown(ours, messages=messages, system="x") == (
        '<bos>[system] x\n[assistant] I look.<tool_call>{"name": "time", "arguments": {"a": 1}}</tool_call>\n'
        "[tool] noon\n[user] so\n[tool] \n[assistant] "
    )
    forced = {"tools": [TIME], "tool_choice": {"type": "tool", "name": "time"}}
    assert shown(ours, **forced).endswith('<tool_call>\n{"name": "time", "arguments":')
    assert shown(ours, tools=[TIME], tool_choice={"type": "any"}).endswith('<tool_call>\n{"name":')
    assert shown(ours, tools=[TIME], tool_choice={"type": "none"}) == shown(ours)


THOUGHT: dict[str, Any] = {"type": "thinking", "thinking": "Hm. <b>", "signature": "EqQB"}
REDACTED: dict[str, Any] = {"type": "redacted_thinking", "data": "EmwK"}


def test_thoughts_of_the_history_are_left_out(
    ours: MessagesReader, counter: MessagesReader, client: anthropic.Anthropic
) -> None:
    text = {"type": "text", "text": "so"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "time", "input": {}}
    said = [
        {"role": "assistant", "content": [text, use]},
        USER,
        {"role": "assistant", "content": [text]},
        USER,
    ]
    thought = [
        {"role": "assistant", "content": [REDACTED, THOUGHT, text, THOUGHT, use]},
        USER,
        {"role": "assistant", "content": [THOUGHT, text]},
        USER,
    ]
    assert shown(ours, messages=thought) == shown(ours, messages=said)
    assert counter.read({"messages": thought}) == counter.read({"messages": said})
    off: Any = {"type": "disabled"}
    answers = [
        client.messages.create(model="toy", max_tokens=5, messages=messages, thinking=off).content[0].text
        for messages in (said, thought)
    ]  # type: ignore[list-item]
    assert answers[0] == answers[1]


def test_a_text_of_a_schema(tiny_server: Running) -> None:
    """A model that has never seen JSON."""
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="none", max_retries=0) as client:
        form: Any = {"type": "json_schema", "schema": {"enum": [{"yes": True}, {"yes": False}]}}
        given: Any = {"model": "tiny", "messages": [USER], "output_config": {"format": form}}
        answer = client.messages.create(**given, max_tokens=40)
        assert answer.stop_reason == "end_turn" and json.loads(answer.content[0].text)["yes"] in (True, False)
        assert client.messages.count_tokens(**given).input_tokens > 0


def _with(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"max_tokens": 9, "messages": [{"role": role, "content": list(blocks)}]}


LEAST: dict[str, Any] = {"max_tokens": 9, "messages": [USER]}
WRONG: list[tuple[Any, str]] = [
    (3, "not a JSON object"),
    (LEAST | {"stop": "a"}, "There is no field stop. "),
    (LEAST | {"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking is not supported"),
    ({"messages": [USER]}, "The request has no max_tokens"),
    (LEAST | {"max_tokens": 0}, "max_tokens is 0"),
    (LEAST | {"messages": []}, "no messages"),
    (LEAST | {"messages": ["a"]}, r"messages\[0\].role is neither"),
    (LEAST | {"messages": [{"role": "system", "content": "a"}]}, r"messages\[0\].role is neither"),
    (LEAST | {"messages": [{"role": "user"}]}, r"messages\[0\].content is not a text"),
    (_with("a"), r"messages\[0\].content\[0\] is not a block of the type text or tool_result"),
    (_with({"type": "image"}), r"messages\[0\].content\[0\] is not a block of the type text or tool_result"),
    (_with({"type": "text"}), r"messages\[0\].content\[0\].text is missing"),
    (_with({"type": "tool_result", "tool_use_id": 3}), r"content\[0\].tool_use_id is 3"),
    (_with({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}),
     r"messages\[0\].content\[0\].content\[0\] is not a block"),
    (_with({"type": "tool_use"}), "type text or tool_result"),
    (_with({"type": "tool_use", "id": "a"}, role="assistant"), r"content\[0\].name is missing"),
    (_with({"type": "tool_use", "id": "a", "name": "f", "input": 3}, role="assistant"),
     r"content\[0\].input is 3, not an object"),
    (_with({"type": "tool_result", "tool_use_id": "a", "content": 0}), r"content\[0\].content is not a text"),
    (_with(THOUGHT), r"messages\[0\].content\[0\] is not a block of the type text or tool_result"),
    (_with({"type": "thinking"}, role="assistant"), r"content\[0\].thinking is missing"),
    (_with(REDACTED | {"data": 3}, role="assistant"), r"content\[0\].data is 3, not a text"),
    (LEAST | {"system": [THOUGHT]}, r"system\[0\] is not a block of the type text"),
    (LEAST | {"system": 3}, "system is not a text"),
    (LEAST | {"output_config": {"effort": "low"}}, "There is no field output_config.effort"),
    (LEAST | {"output_config": {"format": {"type": "json_schema"}}}, "output_config.format has no schema"),
    (LEAST | {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
     "output_config.format.schema cannot be kept"),
    (LEAST | {"stop_sequences": "a"}, "stop_sequences is \"a\", not a list of texts"),
    (LEAST | {"stop_sequences": [""]}, r"stop_sequences\[0\] is an empty text"),
    (LEAST | {"stop_sequences": ["a"] * 65}, "64 are the most"),
    (LEAST | {"tools": [{"type": "bash_20250124", "name": "bash"}]}, r"tools\[0\] is not an object of"),
    (LEAST | {"tools": [WEATHER | {"input_schema": 3}]}, r"tools\[0\].input_schema is not"),
    (LEAST | {"tool_choice": "auto"}, "tool_choice is not an object"),
    (LEAST | {"tool_choice": {"type": "any"}}, "the request has no tools"),
    (LEAST | {"tools": [TIME], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice names 'x'"),
    (LEAST | {"tools": [TIME], "tool_choice": {"type": "any"},
              "messages": [USER, USER | {"role": "assistant"}]}, "beginning of an answer"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_wrong_gets_a_sentence(ours: MessagesReader, body: Any, sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        ours.read(body)


def test_errors_are_in_anthropics_shape(client: anthropic.Anthropic, server: Running) -> None:
    with pytest.raises(anthropic.BadRequestError, match="seed") as wrong:
        client.messages.create(
            model="toy", max_tokens=3, messages=[USER], extra_body={"seed": -1}, stream=True
        )
    assert wrong.value.body["type"] == "error"
    assert wrong.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError, match='no model "other" here') as unknown:
        client.messages.count_tokens(model="other", messages=[USER])
    assert unknown.value.body["error"]["type"] == "not_found_error"
    status, body = server.post("/v1/messages", b"{")
    assert status == 400 and fits(body, SCHEMAS["MessagesError"])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DogeExportError("No."), "invalid_request_error", "No."),
        (NoNumbersError("NaN."), "api_error", "NaN."),
        (Ended(), "api_error", "The server is ending."),
    ],
)
def test_a_stream_that_breaks_off_says_why(ours: MessagesReader, error: Any, kind: str, message: str) -> None:
    request: Any = ours.read(LEAST)
    name, event = MessageAnswer(request, "toy", ours.tokenizer).failed(error)
    assert name == event["type"] == "error" and event["error"]["type"] == kind
    assert event["error"]["message"].startswith(message)


@pytest.mark.parametrize("field", SCHEMAS["MessagesRequest"]["properties"])
def test_a_field_is_taken_where_its_schema_says_so(
    ours: MessagesReader, counter: MessagesReader, field: str
) -> None:
    values = VALUES if field != "model" else [None]
    bodies = [LEAST | {field: value} for value in values]
    assert disagreements(ours.read, "MessagesRequest", bodies) == []
    bodies = [{"messages": [USER], field: value} for value in values]
    assert disagreements(counter.read, "CountTokensRequest", bodies) == []


def test_messages_are_taken_where_their_schema_says_so(ours: MessagesReader) -> None:
    bodies = [body for body, _ in WRONG if isinstance(body, dict) and body.get("messages") != [USER]]
    bodies = [body for body in bodies if "tools" not in body]
    good = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "a"}
    bodies += [_with(THOUGHT, REDACTED, role="assistant"), _with(REDACTED)]
    bodies += [_with(good, role="assistant"), _with(good), _with(result), _with(result, role="assistant")]
    assert disagreements(ours.read, "MessagesRequest", bodies) == []


def test_answers_are_as_described(server: Running) -> None:
    status, whole = server.post("/v1/messages", LEAST)
    assert status == 200 and fits(whole, SCHEMAS["MessagesAnswer"])
    status, count = server.post("/v1/messages/count_tokens", {"messages": [USER]})
    assert status == 200 and fits(count, SCHEMAS["TokenCount"])
