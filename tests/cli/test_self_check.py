"""`doge-export serve --self-check`: before it listens."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli import main
from doge_export.runtime import Event, self_check
from tests.runtime._toy import write_toy_bundle

# A bundle without a tokenizer, so that it ends where it would be served.
NOT_SERVED = "no tokenizer.json"


def test_it_serves_where_all_texts_are_the_same(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(exported()[1].path), "--self-check", "6"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"each of \d+ texts is what it is alone \(6 requests, ", said) and NOT_SERVED in said


def test_it_does_not_where_one_differs(
    exported: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = self_check.stream_alone

    def other(*arguments: Any) -> Iterator[Event]:
        return (replace(event, token=event.token ^ 1) for event in alone(*arguments))

    monkeypatch.setattr(self_check, "stream_alone", other)
    assert main(["serve", str(exported()[1].path), "--self-check", "6"]) == 1
    said = capsys.readouterr().err
    assert "texts are not what they are alone. " in said and NOT_SERVED not in said


def test_a_bundle_whose_texts_share_no_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["serve", str(write_toy_bundle(tmp_path).path), "--self-check", "--host", "no.such.host.invalid"]
        )
        == 2
    )
    assert "nothing to compare" in capsys.readouterr().err
