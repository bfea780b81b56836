"""What scripts/try_clients.py puts between clients and a server. The clients themselves need a registry."""

import json
from pathlib import Path

import pytest

from clients._calls import TOOL, run
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import write_toy_bundle
from try_clients import with_tools


def test_a_bundle_without_tools_gets_a_template_that_knows_them(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    (bundle.path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    folder = with_tools(bundle.path, tmp_path / "with")
    assert (folder / "model.onnx").resolve() == (bundle.path / "model.onnx").resolve()
    assert with_tools(folder, tmp_path / "again") == folder
    reader = RequestReader(bundle, Tokenizer.load(folder), "toy")
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"now": true}'}}
    body = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ],
        "tools": [TOOL],
        "tool_choice": "required",
    }
    text = reader.served.tokenizer.decode(reader.read(body, chat=True).prompts[0])
    assert '<tool_call>{"name": "weather", "arguments": {"now": true}}</tool_call>' in text
    assert text.endswith("<tool_call>\n") or "<|assistant|><tool_call>" in text


def test_a_call_that_fails_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    def good() -> None:
        """create"""

    def bad() -> None:
        """stream"""
        raise ValueError("no\n  stream")

    run([good, bad])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"call": "create", "error": ""}, {"call": "stream", "error": "ValueError: no stream"}]
