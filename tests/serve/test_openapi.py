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
from doge_export.serve.fields import UNSUPPORTED
from doge_export.serve.openapi import ROUTES, description
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import EOS, write_toy_bundle
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
    *({"include_usage": True}, {"type": "text"}, {"type": "json_object"}),
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
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


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
    routes: list[Any] = list(build_app(service, RequestReader(toy, service.tokenizer, "toy")).routes)
    service.close()
    found = {route.path: {method.lower() for method in route.methods} - {"head"} for route in routes}
    assert found == {path: set(operations) for path, operations in ROUTES.items()}


@pytest.mark.parametrize(("request_name", "field"), FIELDS)
def test_a_field_is_taken_where_its_schema_says_so(
    reader: RequestReader, request_name: str, field: str
) -> None:
    schema = SCHEMAS[request_name]
    off = UNSUPPORTED.get(field, ())  # to Python 0 is False and 1 is True, so the server takes either
    values = [value for value in VALUES if not (value in off and type(value) not in map(type, off))]
    values = [value for value in values if value not in UNSAID.get(field, [])]
    tried = [LEAST[request_name] | {field: value} for value in values]
    if field == "stream_options":  # of no other type is it looked at
        tried = [body for body in tried if isinstance(body[field], dict)]
    found = [taken(reader, body, request_name == "ChatRequest") for body in tried]
    assert found == [fits(body, schema) for body in tried]
    assert any(found)


@pytest.mark.parametrize("prompt", [*VALUES, [[1], [2]], [[]], ["a", 1], [[1], "a"], ["a", "b"]])
def test_a_prompt_is_taken_where_its_schema_says_so(reader: RequestReader, prompt: Any) -> None:
    body = {"prompt": prompt}
    assert taken(reader, body, chat=False) == fits(body, SCHEMAS["CompletionRequest"])


MESSAGE = {"role": "user", "content": "a"}
CONTENTS: list[Any] = [[], [{"text": "a"}], [{"type": "image_url"}], ["a"], 3]


@pytest.mark.parametrize(
    "messages",
    [*VALUES, [MESSAGE], [MESSAGE, MESSAGE], [{}], [{"role": "user"}], [MESSAGE | {"role": 1}]]
    + [[MESSAGE | {"content": content}] for content in CONTENTS],
)
def test_messages_are_taken_where_their_schema_says_so(reader: RequestReader, messages: Any) -> None:
    body = {"messages": messages}
    assert taken(reader, body, chat=True) == fits(body, SCHEMAS["ChatRequest"])


class Watched(dict[str, Any]):
    """A body that remembers which of its fields were asked for."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("name", LEAST)
def test_no_field_is_read_that_is_not_described(reader: RequestReader, name: str) -> None:
    body = Watched(LEAST[name])
    reader.read(body, name == "ChatRequest")
    assert body.asked | {"model"} == set(SCHEMAS[name]["properties"])


def test_a_field_that_is_not_described_changes_nothing(reader: RequestReader) -> None:
    body = LEAST["CompletionRequest"]
    assert reader.read(body | {"user": 3, "store": True}, chat=False) == reader.read(body, chat=False)


@pytest.mark.parametrize(
    ("path", "request_name"), [("completions", "Completion"), ("chat/completions", "Chat")]
)
def test_responses_are_as_described(served: Running, path: str, request_name: str) -> None:
    asked = LEAST[f"{request_name}Request"] | {"max_tokens": 3}
    content = ROUTES[f"/v1/{path}"]["post"]["responses"]
    status, whole = served.post(f"/v1/{path}", asked)
    assert status == 200 and fits(whole, content["200"]["content"]["application/json"]["schema"])
    streamed = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    _, text = served.post(f"/v1/{path}", asked | streamed)
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
