"""What the caches of a server may take, and where what texts began with is kept."""

from pathlib import Path
from typing import Any

import pytest

from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.runtime.scheduling import CacheLimits
from tests.serve._inside import inside
from tests.serve._running import serving

REQUEST: dict[str, Any] = {
    "prompt": "It was the best of times, it was the worst of times, and nobody could say which it was. " * 2,
    "max_tokens": 5,
    "temperature": 0,
}


def test_kept_beginnings_outlive_the_server(trained: Bundle, tmp_path: Path) -> None:
    answers, counts = [], []
    for options in (["--prefix-bytes", "8m"], ["--state-bytes", "1G"]):
        given = ("--state-dir", str(tmp_path / "a/b"), *options)
        with serving(trained.path, tmp_path / "log", *given) as running:
            answers.append(running.post("/v1/completions", REQUEST)[1]["choices"])
            lines = running.request("GET", "/metrics")[1].splitlines()
            counts += [line.split()[1] for line in lines if line.startswith("doge_export_prefix_hits_total")]
            assert running.end() == 0
    assert answers[0] == answers[1]
    assert [float(count) for count in counts] == [0, 1]


@pytest.mark.parametrize("size", ["", "many", "-1", "1.5G", "9Q", "5 5"])
def test_what_is_no_size(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "bundle", "--prefix-bytes", size]) == 2
    assert f"{size!r} is no size. Sizes are like" in capsys.readouterr().err


def test_a_text_that_never_fits_is_refused(trained: Bundle) -> None:
    with inside(trained, caches=CacheLimits(cache_bytes=100_000)) as served:
        status, _, answer = served.ask("POST", "/v1/completions", REQUEST)
        assert status == 400 and "may have 100,000 (--cache-bytes)" in answer["error"]["message"]
        assert {slot["cache_limit_bytes"] for slot in served.ask("GET", "/slots")[2]} == {100_000}


def test_a_folder_without_a_use_is_said(
    scripted: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with inside(scripted, caches=CacheLimits(state_folder=tmp_path / "a")) as served:
        served.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert "the texts of this bundle do not share calls" in caplog.text
    assert not (tmp_path / "a").exists()
