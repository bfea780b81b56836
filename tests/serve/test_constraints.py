"""Texts within rules over HTTP: doge-tiny in a process of its own, asked by OpenAI's client and by hand."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.constraints import RULES, RuleReader, read_rules
from doge_export.serve.errors import FieldError
from tests.runtime._toy import write_toy_bundle
from tests.serve._running import Running

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "people": {"type": "integer", "maximum": 9999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
WILD: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 60}
LARK = 'start: ("ab" | "c")~2 "."'
ENDLESS = {"allOf": [{"type": "string", "pattern": f"(.*{number}.*)"} for number in range(30)]}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RuleReader:
    bundle = write_toy_bundle(tmp_path_factory.mktemp("ruled") / "toy", generation={"eos_token_id": 1})
    return RuleReader(bundle, Tokenizer.load(bundle.path))


def start(reader: RuleReader, body: dict[str, Any]) -> Any:
    rules = read_rules(body)
    return None if rules is None else reader.start(rules)


def test_a_schema_is_kept_in_every_choice(tiny: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Which city?"}]
    given: Any = {"model": "tiny", "messages": messages, "response_format": FORMAT, "n": 8, **WILD}
    answer = tiny.chat.completions.create(**given)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    texts = [choice.message.content for choice in answer.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1
    streamed = [""] * 8
    for chunk in tiny.chat.completions.create(**given, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({"guided_regex": "[a-f]{4}-\\d\\d"}, r"[a-f]{4}-\d\d"),
        ({"structured_outputs": {"regex": "x{3}", "json": None}}, "xxx"),
        ({"guided_choice": ["red", "blue"]}, "red|blue"),
        ({"structured_outputs": {"choice": ["one"]}}, "one"),
        ({"guided_grammar": LARK}, r"(ab|c){2}\."),
        ({"grammar": LARK}, r"(ab|c){2}\."),
        ({"guided_json": {"const": 17}}, "17"),
        ({"guided_json": '{"enum": ["a b"]}'}, '"a b"'),
        ({"json_schema": {"type": "boolean"}}, "true|false"),
        ({"response_format": {"type": "json_object", "schema": {"const": {}}}}, r"\{\s*\}"),
        ({"response_format": {"type": "text"}, "max_tokens": 2}, "(?s:.*)"),
    ],
)
def test_every_name_of_the_rules(tiny_server: Running, fields: dict[str, Any], expression: str) -> None:
    body = {"prompt": ["My fellow", "The"], **WILD, **fields}
    status, answer = tiny_server.post("/v1/completions", body)
    assert status == 200, answer
    for choice in answer["choices"]:
        assert re.fullmatch(expression, choice["text"])


def test_a_text_is_the_one_it_is_alone(tiny_server: Running) -> None:
    """Requests that are answered at once, each with rules of its own."""
    fields = [{"response_format": FORMAT}, {"guided_regex": "[a-z ]{20}"}, {}, {"guided_choice": ["a", "b"]}]
    bodies = [{"prompt": "The", **WILD, **each} for each in fields]
    alone = [tiny_server.post("/v1/completions", body)[1]["choices"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: tiny_server.post("/v1/completions", body), [*bodies, *bodies]))
    assert [answer["choices"] for _, answer in together] == [*alone, *alone]


def test_others_are_answered_while_a_schema_is_looked_at(tiny_server: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tiny_server.post, "/v1/completions", {"prompt": "a", "guided_json": ENDLESS})
        assert tiny_server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        assert not waiting.done()
        status, answer = waiting.result()
    assert status == 400 and "guided_json asks for too much" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"response_format": "json"}, "response_format has no type that is known here. Say "),
        ({"response_format": {"type": "structural_tag"}}, "response_format has no type that is known"),
        ({"response_format": {"type": "json_schema"}}, "response_format has no json_schema.schema."),
        ({"response_format": {"type": "json_object", "schem": {}}}, "response_format has 'schem', which"),
        ({"response_format": {"type": "text", "schema": {}}}, "has a schema, and the type text"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "city"}}}},
            "response_format.json_schema.schema cannot be kept: Invalid type: city.",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "response_format and guided_regex both say what the text has to be. Send one of them.",
        ),
        ({"structured_outputs": {}}, "structured_outputs is no object with json, "),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs has 2 rules"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object is 'yes'"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs has 'structural_tag'"),
        ({"guided_json": "a"}, "guided_json is no JSON schema, which is an object."),
        ({"guided_json": {"not": {}}}, "guided_json cannot be kept: Unimplemented keys"),
        ({"guided_regex": 3}, "guided_regex is 3, not a text."),
        ({"guided_choice": "a"}, "guided_choice is not a list of texts."),
        ({"guided_choice": ["a", 3]}, "an entry of guided_choice is 3, not a text."),
        ({"guided_grammar": "begin: x"}, "guided_grammar cannot be kept"),
        ({"grammar": 'root ::= "a"'}, "grammar is a grammar in GBNF or EBNF, and Lark is read here."),
        ({"json_schema": '{"type": "null"}'}, "json_schema is not an object."),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_is_no_rule_is_one_sentence(reader: RuleReader, body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FieldError) as raised:
        start(reader, body)
    assert raised.value.field == next(iter(body))
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_is_loaded_where_nothing_is_asked(
    reader: RuleReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_export.serve.constraints.RuleTokenizer", None)
    nothing = dict.fromkeys(RULES)
    assert start(reader, nothing | {"prompt": "a"}) is None
    assert start(reader, {"response_format": {"type": "text"}}) is None
    assert start(reader, {"structured_outputs": {"json_object": False}}) is None
