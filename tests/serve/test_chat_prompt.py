"""What a chat becomes before the model reads it, by the fields that say so."""

from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.conversation import templated
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import write_toy_bundle

#: As Qwen3's it looks into every content, and clients send none beside calls.
LOOKS_INTO_CONTENT = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content }}{{ '!' if loud }}"
    "{% for c in m.tool_calls or () %}<{{ c.function.name }}>{% endfor %}"
    "{% if add_generation_prompt or not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CALL = {"id": "7", "type": "function", "function": {"name": "at", "arguments": "{}"}}


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> RequestReader:
    bundle = write_toy_bundle(tmp_path_factory.mktemp("looking") / "toy")
    (bundle.path / "chat_template.jinja").write_text(LOOKS_INTO_CONTENT)
    return RequestReader(bundle, Tokenizer.load(bundle.path), "toy")


@pytest.mark.parametrize(
    ("message", "fields", "text"),
    [
        ({"content": "a"}, {}, "[assistant] a\n[assistant] "),
        ({"content": "a"}, {"add_generation_prompt": True}, "[assistant] a\n[assistant] "),
        ({"content": "a"}, {"add_generation_prompt": False}, "[assistant] a"),
        ({"content": "a "}, {"continue_final_message": True}, "[assistant] a "),
        ({"content": "a"}, {"chat_template_kwargs": {"loud": True}}, "[assistant] a!\n[assistant] "),
        ({"content": None, "tool_calls": [CALL]}, {}, "[assistant] <at>\n[assistant] "),
        ({"content": "a", "tool_calls": [CALL]}, {}, "[assistant] a<at>\n[assistant] "),
    ],
)
def test_a_chat_as_a_prompt(
    looking: RequestReader, message: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    body = {"messages": [{"role": "assistant", **message}], **fields}
    tokenizer = looking.served.tokenizer
    assert looking.read(body, chat=True).prompts == (tuple(tokenizer.encode(text, False)),)


def test_what_a_template_refuses_is_said_as_it_came(looking: RequestReader) -> None:
    messages = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "user", "content": 3}]
    with pytest.raises(DogeExportError, match="no attribute 'content'"):
        templated(looking.served.tokenizer, messages)


@pytest.mark.parametrize("fields", [{"continue_final_message": True}, {"add_generation_prompt": False}])
def test_a_call_that_must_come_begins_an_answer(reader: RequestReader, fields: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [tool], "tool_choice": "required"}
    reader.read(body, chat=True)
    with pytest.raises(DogeExportError, match=f"{next(iter(fields))} and tool_choice both say"):
        reader.read(body | fields, chat=True)
