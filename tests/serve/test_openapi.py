"""The server's description of itself, held to what the server does."""

import json
from collections.abc import Generator
from typing import Any

import jsonschema
import pytest

import doge_export
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session
from doge_export.serve import TextService
from doge_export.serve.app import build_app
from doge_export.serve.openapi import ROUTES, description
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import CHAT_TEMPLATE, EOS, write_toy_bundle
from tests.serve._inside import one
from tests.serve._running import Running, serving

SCHEMAS = description("0")["components"]["schemas"]
LEAST: dict[str, dict[str, Any]] = {
    "CompletionRequest": {"prompt": "the cat"},
    "ChatRequest": {"messages": [{"role": "user", "content": "the cat"}]},
}
FIELDS = [
    (request, field)
    for request in LEAST
    for field in SCHEMAS[request]["properties"]
    if field not in ("messages", "model", "prompt")
]
#: Of any type, in every range and out of it: what a field is tried with.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 64, 65, 0.5, 1.5, -0.5, 10**30, "", "a", [], ["a"], [""], [1], {}),
    *(
        {"include_usage": True},
        {"include_usage": 1},
        {"continuous_usage_stats": True},
        {"type": "text"},
        {"type": "json_object"},
    ),
    *(2.0, 20, 21, -2, -3, 2**64, "none", "auto", ["text"], ["a"] * 17, ["a" * 1025], [3] * 257, [2**63]),
    *({"7": 100}, {"7": -100.5}, {"7": "1"}, {"07": 1}, {"-1": 1}, {"x": 1}, {"7": True}, [0.5], [True]),
    *({"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}, {"type": "json_schema"}),
    *({"json_object": True}, {"regex": "a+"}, {"regex": ""}, 'start: "a"'),
]
#: What a field's schema leaves to the server: which schemas can be kept, and which type needs one.
_TYPED = [value for value in VALUES if isinstance(value, dict) and "type" in value]
UNSAID: dict[str, list[Any]] = {
    "guided_json": _TYPED,
    "json_schema": _TYPED,
    "response_format": [{"type": "json_schema"}],
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("described") / "toy"
    bundle = write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})
    shown = CHAT_TEMPLATE.replace("{% endfor %}", "{{ message.tool_calls or '' }}{% endfor %}", 1)
    (folder / "chat_template.jinja").write_text(shown)  # one that leaves calls out has them refused
    return bundle


@pytest.fixture(scope="module")
def reader(toy: Bundle) -> RequestReader:
    return RequestReader(toy, Tokenizer.load(toy.path), "toy")


@pytest.fixture(scope="module")
def served(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(toy.path, tmp_path_factory.mktemp("log") / "log") as running:
        yield running


def fits(value: Any, schema: dict[str, Any]) -> bool:
    whole = schema | {"components": {"schemas": SCHEMAS}}
    return jsonschema.Draft202012Validator(whole).is_valid(value)


def taken(reader: RequestReader, body: Any, chat: bool) -> bool:
    try:
        reader.read(body, chat)
    except DogeExportError:
        return False
    return True


def test_it_is_served(served: Running) -> None:
    assert served.request("GET", "/openapi.json") == (200, description(doge_export.__version__))


def test_every_schema_is_one() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_route_is_described(toy: Bundle) -> None:
    service = TextService(Session.open(toy), Tokenizer.load(toy.path))
    routes: list[Any] = list(build_app(one(service, RequestReader(toy, service.tokenizer, "toy"))).routes)
    service.close()
    listed = [route for route in routes if route.include_in_schema]
    found = {route.path_format: {method.lower() for method in route.methods} - {"head"} for route in listed}
    assert found == {path: set(operations) for path, operations in ROUTES.items()}


@pytest.mark.parametrize(("request_name", "field"), FIELDS)
def test_a_field_is_taken_where_its_schema_says_so(
    reader: RequestReader, request_name: str, field: str
) -> None:
    tried = [LEAST[request_name] | {field: value} for value in VALUES if value not in UNSAID.get(field, [])]
    found = [taken(reader, body, request_name == "ChatRequest") for body in tried]
    assert found == [fits(body, SCHEMAS[request_name]) for body in tried]
    assert any(found)


TOGETHER: list[dict[str, Any]] = [
    {"max_tokens": 3, "max_completion_tokens": 3},
    {"max_tokens": 3, "max_completion_tokens": None},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": False, "top_logprobs": 3},
    {"logprobs": None, "top_logprobs": 0},
    {"max_tokens": 0, "echo": True},
    {"max_tokens": 0, "echo": False},
    {"max_tokens": 0, "echo": True, "logprobs": 0},
]


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("fields", TOGETHER, ids=str)
def test_fields_are_taken_together_where_the_schema_says_so(
    reader: RequestReader, name: str, fields: dict[str, Any]
) -> None:
    body = LEAST[name] | fields
    assert taken(reader, body, name == "ChatRequest") == fits(body, SCHEMAS[name])


@pytest.mark.parametrize("prompt", [*VALUES, [[1], [2]], [2.0], [[]], ["a", 1], [[1], "a"], ["a", "b"]])
def test_a_prompt_is_taken_where_its_schema_says_so(reader: RequestReader, prompt: Any) -> None:
    body = {"prompt": prompt}
    assert taken(reader, body, chat=False) == fits(body, SCHEMAS["CompletionRequest"])


MESSAGE = {"role": "user", "content": "a"}
CONTENTS: list[Any] = [[], [{"text": "a"}], [{"type": "image_url"}], ["a"], 3, None]
CONTENTS += [[{"type": "text", "text": "a"}], [{"type": "image_url", "text": "a"}]]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OTHERS: list[Any] = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "assistant", "content": "a", "tool_calls": []},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "assistant", "content": None, "tool_calls": [3]},
    {"role": "user", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "a", "tool_call_id": "1"},
    {"role": "tool", "content": "a", "tool_call_id": 1},
    {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None},
    {"role": "assistant", "content": "a", "audio": {"id": "1"}},
    {"role": "user", "content": "a", "contents": "a"},
]


@pytest.mark.parametrize(
    "messages",
    [*VALUES, [MESSAGE], [MESSAGE, MESSAGE], [{}], [{"role": "user"}], [MESSAGE | {"role": 1}]]
    + [[MESSAGE | {"content": content}] for content in CONTENTS]
    + [[message] for message in OTHERS],
)
def test_messages_are_taken_where_their_schema_says_so(reader: RequestReader, messages: Any) -> None:
    body = {"messages": messages}
    assert taken(reader, body, chat=True) == fits(body, SCHEMAS["ChatRequest"])


@pytest.mark.parametrize("name", LEAST)
def test_a_field_that_is_not_described_is_refused(reader: RequestReader, name: str) -> None:
    described = set(SCHEMAS[name]["properties"])
    every = {field for each in LEAST for field in SCHEMAS[each]["properties"]}
    for field in (every | {"grammar", "guided_json"}) - described:
        body = LEAST[name] | {field: None}
        assert not fits(body, SCHEMAS[name]) and not taken(reader, body, name == "ChatRequest")


@pytest.mark.parametrize(
    ("path", "request_name", "scores"),
    [
        ("completions", "Completion", {}),
        ("completions", "Completion", {"logprobs": 2, "echo": True}),
        ("chat/completions", "Chat", {}),
        ("chat/completions", "Chat", {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_responses_are_as_described(
    served: Running, path: str, request_name: str, scores: dict[str, Any]
) -> None:
    asked = LEAST[f"{request_name}Request"] | {"max_tokens": 3} | scores
    content = ROUTES[f"/v1/{path}"]["post"]["responses"]
    status, whole = served.post(f"/v1/{path}", asked)
    assert status == 200 and fits(whole, content["200"]["content"]["application/json"]["schema"])
    options = {"include_usage": True, "continuous_usage_stats": bool(scores)}
    _, text = served.post(f"/v1/{path}", asked | {"stream": True, "stream_options": options, "n": 2})
    *events, last = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    kind = "CompletionChunk" if path == "completions" else "ChatCompletionChunk"
    chunks = [json.loads(event) for event in events]
    assert last == "[DONE]" and len(chunks) > 2
    assert [chunk for chunk in chunks if not fits(chunk, SCHEMAS[kind])] == []


@pytest.mark.parametrize(
    ("body", "status"), [({"n": 0}, "400"), ({"prompt": "a", "model": "another"}, "404")]
)
def test_errors_are_as_described(served: Running, body: Any, status: str) -> None:
    found, answer = served.post("/v1/completions", body)
    schema = ROUTES["/v1/completions"]["post"]["responses"][status]["content"]["application/json"]["schema"]
    assert str(found) == status and fits(answer, schema)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_the_rest_is_as_described(served: Running, path: str) -> None:
    status, answer = served.request("GET", path)
    schema = ROUTES[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert status == 200 and fits(answer, schema)
