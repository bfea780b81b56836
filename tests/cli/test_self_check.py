"""`doge-export serve --self-check`: before it listens."""

from pathlib import Path
from typing import Any

import pytest

from doge_export.cli import main
from doge_export.runtime import self_check
from tests.runtime._toy import write_toy_bundle

NOWHERE = ("--host", "no.such.host.invalid")  # so that it ends where it would listen


def test_it_serves_where_all_texts_are_the_same(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = exported()[1]
    assert main(["serve", str(bundle.path), "--self-check", "6", *NOWHERE]) == 2
    said = capsys.readouterr().err
    assert "is what it is alone (6 requests, " in said and "no address to listen on" in said


def test_it_does_not_where_one_differs(
    exported: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "_by_row", lambda events: {0: events[: len(events) // 2]})
    assert main(["serve", str(exported()[1].path), "--self-check", "6", *NOWHERE]) == 1
    said = capsys.readouterr().err
    assert "texts are not what they are alone. " in said and "no address to listen on" not in said


def test_a_bundle_whose_texts_share_no_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(write_toy_bundle(tmp_path).path), "--self-check", *NOWHERE]) == 2
    assert "nothing to compare" in capsys.readouterr().err
