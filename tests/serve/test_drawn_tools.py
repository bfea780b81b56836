"""What the rules of calls let a model write is what the parser reads as calls: texts that doge-tiny draws
from all that is allowed, in each format."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session, generate
from doge_export.serve.requests import RequestReader
from doge_export.serve.tools import FORMATS, ChatAnswer, ToolFormat
from tests.serve.test_ruled_tools import HERMES, JSON, LLAMA, TIME, USER, tool

TEMPLATES = {"Hermes": HERMES, "Llama 3": LLAMA}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "number"},
        "i": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "s": {"type": "string", "maxLength": 4},
    },
    "required": ["n"],
    "additionalProperties": False,
}
ONE = {"parallel_tool_calls": False}
FIELDS: list[dict[str, Any]] = [
    {"tool_choice": "required"},
    {"tool_choice": "required", **ONE},
    {"response_format": JSON, **ONE},
]
SCHEMAS: dict[str, Any] = {"add": SCHEMA, "time": {"maxProperties": 0}}


@pytest.fixture(scope="module")
def session(trained: Bundle) -> Session:
    return Session.open(trained, threads=1)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("fields", FIELDS, ids=" ".join)
@pytest.mark.parametrize("seed", range(2))
def test_what_is_allowed_is_read(
    session: Session, tmp_path: Path, form: ToolFormat, fields: Any, seed: int
) -> None:
    bundle = Bundle.open(Path(shutil.copytree(session.bundle.path, tmp_path / "tiny")))
    (bundle.path / "chat_template.jinja").write_text(TEMPLATES[form.name])
    tokenizer = Tokenizer.load(bundle.path)
    given = {"messages": [USER], "tools": [tool("add", SCHEMA), TIME], "n": 32, "max_tokens": 120, **fields}
    given |= {"temperature": 3, "seed": seed, "top_p": 1, "top_k": 0}
    request = RequestReader(bundle, tokenizer, "tiny").read(given, chat=True)
    made = generate(
        session, request.prompts, request.options, tokenizer, constraints=request.constraints()
    ).completions
    assert any(each.finish_reason != "length" for each in made)
    for each in made:
        answer = ChatAnswer(request.tools)
        answer.add(each.text, ended=True)
        for call in answer.calls:
            arguments = json.loads(call.json, parse_constant=lambda _: math.nan)
            assert arguments == call.arguments, "JSON, and the same in every API"
            jsonschema.validate(arguments, SCHEMAS[call.name])
        if each.finish_reason == "length":  # cut in a call, or in the text of the rule
            text = answer.text.lstrip()
            assert any(text[: len(mark)] == mark[: len(text)] for mark in (form.opens or "{", '{"yes'))
        elif answer.text:
            assert "response_format" in fields and json.loads(answer.text) == {"yes": True}
            assert not answer.calls
        else:
            assert answer.calls
