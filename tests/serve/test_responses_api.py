"""/v1/responses: asked by OpenAI's own client, and by hand."""

from collections.abc import Generator
from typing import Any, Literal

import openai
import pydantic
import pytest

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.requests import RequestReader
from doge_export.serve.responses_api.answer import ResponseAnswer
from doge_export.serve.responses_api.reader import ResponseReader
from doge_export.serve.responses_api.store import ResponseStore, Stored
from doge_export.serve.service import Ended
from tests.runtime._toy import EOS, continued
from tests.serve._described import SCHEMAS, VALUES, as_described, disagreements, fits
from tests.serve._running import Running
from tests.serve._scripted import filler

WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
TIME: dict[str, Any] = {"type": "function", "name": "time"}


@pytest.fixture(scope="module")
def client(server: Running) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(reader: RequestReader) -> Tokenizer:
    return reader._tokenizer


@pytest.fixture
def ours(reader: RequestReader, tokenizer: Tokenizer) -> ResponseReader:
    return ResponseReader(reader, tokenizer, ResponseStore())


def text_after(tokenizer: Tokenizer, prompt: str, count: int) -> str:
    new = continued(tokenizer.encode(prompt, add_special_tokens=False), count)
    return tokenizer.decode(new[: new.index(EOS)] if EOS in new else new)


def shown(ours: ResponseReader, **body: Any) -> str:
    """What the model is shown."""
    (ids,) = ours.read({"input": "", **body}).text.prompts
    return ours._tokenizer.decode(ids, skip_special_tokens=False)


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        changing = ("id", "call_id", "item_id", "created_at", "completed_at", "parsed")
        changing += ("parsed_arguments",)
        return {key: without_ids(each) for key, each in value.items() if key not in changing}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


def test_a_text_whole_and_streamed(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    prompt = "<bos>[system] be brief\n[user] the cat\n[assistant] "
    expected = text_after(tokenizer, prompt, 7)
    given: Any = {"model": "toy", "input": "the cat", "instructions": "be brief", "max_output_tokens": 7}
    whole = client.responses.create(**given, metadata={"a": "b"})
    assert whole.output_text == expected != ""
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.instructions, whole.metadata, whole.max_output_tokens) == ("be brief", {"a": "b"}, 7)
    count = len(tokenizer.encode(prompt, add_special_tokens=False))
    counted = client.responses.input_tokens.count(model="toy", input="the cat", instructions="be brief")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", count)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (count, 7)
    assert whole.usage.total_tokens == count + 7
    events: list[Any] = list(client.responses.create(**given, metadata={"a": "b"}, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert "".join(deltas) == expected == events[-4].text == events[-3].part.text
    assert (events[0].response.status, events[0].response.output) == ("in_progress", [])
    assert events[-2].item == events[-1].response.output[0]
    assert without_ids(events[-1].response.to_dict()) == without_ids(whole.to_dict())


def test_tokens_are_counted(client: openai.OpenAI, server: Running) -> None:
    given: Any = {"model": "toy", "input": "the cat", "instructions": "be brief"}
    whole = client.responses.create(**given, max_output_tokens=1)
    assert whole.usage is not None
    assert client.responses.input_tokens.count(**given).input_tokens == whole.usage.input_tokens
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"}]
    path = "/v1/chat/completions/input_tokens"
    status, counted = server.post(path, {"messages": messages})
    assert status == 200 and as_described(path, "post", counted)
    assert counted["input_tokens"] == whole.usage.input_tokens


def test_the_clients_own_stream_puts_it_together(client: openai.OpenAI, ours: ResponseReader) -> None:
    text = filler(ours._tokenizer, 1, shown(ours))
    with client.responses.stream(model="toy", input=text) as stream:
        final = stream.get_final_response()
    assert (final.output_text, final.status, final.incomplete_details) == ("No call.", "completed", None)
    assert final.output[0].status == "completed"


def test_a_conversation_goes_on_from_a_response(client: openai.OpenAI) -> None:
    given: Any = {"model": "toy", "max_output_tokens": 6}
    first = client.responses.create(input="the cat", instructions="be brief", **given)
    second = client.responses.create(input="a dog", previous_response_id=first.id, **given)
    said: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "the cat"}]},
        {"role": "assistant", "content": first.output_text, "type": "message"},
        {"role": "user", "content": "a dog"},
    ]
    alone = client.responses.create(input=said, **given)
    assert (second.output_text, second.usage) == (alone.output_text, alone.usage)
    assert second.previous_response_id == first.id
    counted = client.responses.input_tokens.count(input="a dog", previous_response_id=first.id)
    assert counted.input_tokens == second.usage.input_tokens
    given_back = [*said[:1], *[item.to_dict() for item in first.output], *said[2:]]
    again = client.responses.create(input=given_back, **given)
    assert again.output_text == alone.output_text
    # The conversation outlives the responses before the one that it goes on from.
    assert client.responses.retrieve(first.id) == first
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="No response"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="No response"):
        client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="no such response is kept"):
        client.responses.create(input="a", previous_response_id=first.id, **given)
    said += [{"role": "assistant", "content": second.output_text}, {"role": "developer", "content": "end"}]
    third = client.responses.create(
        input=said[-1:], previous_response_id=second.id, store=False, stream=True, **given
    )
    last = list(third)[-1].response
    assert last.output_text == client.responses.create(input=said, **given).output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(last.id)


def test_calls_of_tools(client: openai.OpenAI, ours: ResponseReader) -> None:
    tools: Any = [WEATHER, TIME]
    text = filler(ours._tokenizer, 0, shown(ours, tools=tools))
    whole = client.responses.create(model="toy", input=text, tools=tools, max_output_tokens=300)
    message, weather, time = whole.output
    assert message.content[0].text == "I look." and whole.status == "completed"
    assert (weather.name, weather.arguments) == ("weather", '{"city": "Bern <é>"}')
    assert (time.name, time.arguments, time.status) == ("time", "{}", "completed")
    with client.responses.stream(model="toy", input=text, tools=tools, max_output_tokens=300) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert without_ids(final.to_dict()["output"]) == without_ids(whole.to_dict()["output"])
    item = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds[-9:] == [*item, "output_item.done", *item, "output_item.done", "completed"]
    assert {event.output_index for event in events if hasattr(event, "output_index")} == {0, 1, 2}
    # What came of a call is sent back behind the response that made it.
    result: Any = [{"type": "function_call_output", "call_id": weather.call_id, "output": "rain"}]
    client.responses.create(model="toy", input=result, previous_response_id=whole.id, max_output_tokens=1)


def test_the_template_is_shown_the_items(ours: ResponseReader) -> None:
    called = {"type": "function_call", "call_id": "call_1", "name": "time", "arguments": '{"a": 1}'}
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        called,
        called | {"arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"text": "no"}, {"text": "on"}]},
        called,
    ]
    first, second = (
        f'<tool_call>{{"name": "time", "arguments": {each}}}</tool_call>' for each in ('{"a": 1}', "{}")
    )
    assert shown(ours, input=items, instructions="x") == (
        f"<bos>[system] x\n[system] be brief\n[assistant] I look.{first}{second}\n[tool] noon\n"
        f"[assistant] {first}\n[assistant] "
    )  # fmt: skip
    forced: Any = {"tools": [TIME], "tool_choice": {"type": "function", "name": "time"}}
    assert shown(ours, **forced).endswith('<tool_call>\n{"name": "time", "arguments":')
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    assert shown(ours, tools=[WEATHER, TIME], tool_choice=some) == shown(
        ours, tools=[TIME], tool_choice="required"
    )
    for body in ({"input": items, "instructions": "x"}, {"input": "a", **forced}):
        assert ours.count(body) == len(ours.read(body).text.prompts[0])


WRONG: list[tuple[Any, str]] = [
    ([], "not a JSON object"),
    ({"input": "a", "inptu": 1}, r"There is no field inptu. Did you mean input\?"),
    ({"input": "a", "n": None}, "There is no field n. "),
    ({"input": "a", "background": True}, "background is not supported"),
    ({"input": "a", "text": {"format": {"type": "xml"}}}, r"text.format has no type that is known"),
    ({"input": "a", "text": {"format": {"type": "json_schema"}}}, r"text.format has no schema"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {}, "name": 3}}}, "name is 3, not"),
    ({"input": "a", "text": {"format": {"type": "json_object", "schema": {}}}}, "text.format has 'schema'"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
     "text.format.schema cannot be kept"),
    ({"input": "a", "text": {"verbosity": "high"}}, 'text.verbosity is "high"'),
    ({"input": "a", "text": {"forma": {}}}, "Did you mean format"),
    ({}, "no input"),
    ({"input": []}, "no input"),
    ({"input": ["a"]}, r'input\[0\] is "a", not an object'),
    ({"input": [{"type": "reasoning"}]}, r'input\[0\].type is "reasoning"'),
    ({"input": [{"role": "x", "content": "a"}]}, r"input\[0\].role is not one of user"),
    ({"input": [{"role": "user"}]}, r"input\[0\].content is not"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads text alone"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "1"}]},
     r"input\[0\].arguments is not"),
    ({"input": [{"type": "function_call", "name": "f"}]}, r"input\[0\].call_id is missing"),
    ({"input": [{"type": "function_call_output", "call_id": 3}]}, r"input\[0\].call_id is 3"),
    ({"input": [{"type": "function_call_output", "call_id": "a"}]}, r"input\[0\].output is not a text"),
    ({"input": "a", "instructions": 3}, "instructions is 3, not a text"),
    ({"input": "a", "max_output_tokens": 0}, "max_output_tokens is 0"),
    ({"input": "a", "temperature": -1}, "temperature"),
    ({"input": "a", "stream": 1}, "stream is 1, not true or false"),
    ({"input": "a", "metadata": {"a": 1}}, r'metadata\["a"\] is 1, not a text'),
    ({"input": "a", "tools": {}}, "tools is .*, not a list"),
    ({"input": "a", "tools": [{"type": "web_search"}]}, r"tools\[0\] is not an object of the type"),
    ({"input": "a", "tools": [TIME | {"strict": 1}]}, r"tools\[0\].strict is 1, not true or false"),
    ({"input": "a", "tools": [TIME], "tool_choice": {"type": "function"}}, "tool_choice is neither"),
    ({"input": "a", "previous_response_id": "resp_1"}, 'previous_response_id is "resp_1"'),
]  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_wrong_gets_a_sentence(ours: ResponseReader, body: Any, sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        ours.read(body)


def test_a_wrong_request_has_its_status(server: Running) -> None:
    status, body = server.post("/v1/responses", {"input": "a", "seed": -1, "stream": True})
    assert status == 400 and "seed" in body["error"]["message"]
    status, body = server.post("/v1/responses", {"input": "a", "n": 2})
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, "n", "unknown_parameter")
    assert server.post("/v1/responses", {"input": "a", "model": "other"})[0] == 404
    half = {"input": "a", "metadata": {"half": "\ud800"}, "max_output_tokens": 1}
    assert server.post("/v1/responses", half)[1]["metadata"] == {"half": "\ud800"}


def test_a_text_within_rules(tiny: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        yes: bool
        count: Literal[1, 2]

    given: Any = {"model": "tiny", "input": "Is it so?", "max_output_tokens": 60, "temperature": 1.5}
    parsed = tiny.responses.parse(**given, text_format=Answer)
    assert parsed.output_parsed.count in (1, 2) and parsed.status == "completed"
    assert parsed.text.format.type == "json_schema" and parsed.text.format.name == "Answer"
    tools: Any = [WEATHER | {"parameters": {"type": "object", "additionalProperties": False}}]
    form: Any = {"type": "json_schema", "name": "x", "schema": {"enum": ["a", "b"]}}
    either = tiny.responses.create(**given, tools=tools, text={"format": form}, parallel_tool_calls=False)
    (item,) = either.output
    assert item.type == "function_call" or item.content[0].text in ('"a"', '"b"')
    events = list(tiny.responses.create(**given, text={"format": form}, stream=True))
    assert events[-1].response.output_text in ('"a"', '"b"')


@pytest.mark.parametrize("field", SCHEMAS["ResponseRequest"]["properties"])
def test_a_field_is_taken_where_its_schema_says_so(ours: ResponseReader, field: str) -> None:
    least = {} if field == "input" else {"input": "a"}
    values = VALUES if field not in ("model", "previous_response_id") else [None]
    bodies = [least | {field: value} for value in values]
    assert disagreements(ours.read, "ResponseRequest", bodies) == []
    assert disagreements(ours.count, "InputTokensRequest", bodies) == []


def test_items_are_taken_where_their_schema_says_so(ours: ResponseReader) -> None:
    items = [
        each for body, _ in WRONG if isinstance(body, dict) for each in body.get("input") or [] if each != "a"
    ]
    good = [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    ]
    # No schema says of a text that it is JSON.
    bodies = [{"input": [item]} for item in [*items, *good] if item != items[4]]
    assert len(bodies) > 8 and disagreements(ours.read, "ResponseRequest", bodies) == []


def test_responses_are_as_described(server: Running, ours: ResponseReader) -> None:
    body = {"input": filler(ours._tokenizer, 0, shown(ours, tools=[WEATHER, TIME])), "tools": [WEATHER, TIME]}
    status, whole = server.post("/v1/responses", body)
    assert status == 200 and fits(whole, SCHEMAS["Response"])
    assert fits(server.request("GET", f"/v1/responses/{whole['id']}")[1], SCHEMAS["Response"])
    assert fits(server.request("DELETE", f"/v1/responses/{whole['id']}")[1], SCHEMAS["ResponseDeleted"])
    count = server.post("/responses/input_tokens/", body)
    assert count[0] == 200 and as_described("/v1/responses/input_tokens", "post", count[1])
    status, wrong = server.post("/v1/responses/input_tokens", {"input": "a", "max_output_tokens": 3})
    assert (status, wrong["error"]["param"]) == (400, "max_output_tokens")
    status, gone = server.request("GET", f"/v1/responses/{whole['id']}")
    assert status == 404 and fits(gone, SCHEMAS["Error"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DogeExportError("No."), "invalid_prompt", "No."),
        (NoNumbersError("NaN."), "server_error", "NaN."),
        (Ended(), "server_error", "The server is ending."),
    ],
)
def test_a_stream_that_breaks_off_says_why(ours: ResponseReader, error: Any, code: str, message: str) -> None:
    name, event = ResponseAnswer(ours.read({"input": "a"}), "toy", ours._store).failed(error)
    assert name == event["type"] == "response.failed" and fits(event, SCHEMAS["ResponseEvent"])
    assert event["response"]["status"] == "failed" and event["response"]["error"]["code"] == code
    assert event["response"]["error"]["message"].startswith(message)


def stored(key: str, text: str = "") -> Stored:
    return Stored({"id": key, "text": text}, ())


def test_the_store_has_limits() -> None:
    store = ResponseStore(max_responses=2)
    for key in ("a", "b"):
        store.put(stored(key))
    assert store.get("a") == stored("a")  # and so "b" was used longest ago
    store.put(stored("c"))
    assert [store.get(key) is not None for key in "abc"] == [True, False, True]
    assert store.delete("a") and not store.delete("a")
    small = ResponseStore(max_bytes=10 * stored("a").size)
    for key in "abcdefghijkl":
        small.put(stored(key))
    assert [small.get(key) is not None for key in "abcdefghijkl"] == [False] * 2 + [True] * 10
    small.put(stored("x", "~" * small._max_bytes))
    assert small.get("x") is None and small.get("l") is not None
    assert small.delete("l")
    small.put(stored("m"))
    assert small.get("c") is not None, "what was deleted takes no room"
