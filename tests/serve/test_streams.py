"""Streams: when their headers come, what comes while there is nothing, and how they end."""

import http.client
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime import Event
from doge_export.serve.limits import Limits
from doge_export.serve.service import Ended
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._inside import Inside, inside, until

BODY = {"prompt": "the cat", "max_tokens": 5}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("streams") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


def begun(served: Inside) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream whose headers are there."""
    connection = served.connect()
    connection.request("POST", "/v1/completions", json.dumps(BODY | {"stream": True}))
    return connection, connection.getresponse()


def data(text: str) -> list[Any]:
    """What the events hold, the last one left out."""
    *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_headers_and_comments_come_before_the_first_token(toy: Bundle) -> None:
    with inside(toy, Limits(first_seconds=0.05, ping_seconds=0.05)) as served:
        whole = served.post("/v1/completions", BODY)["choices"][0]["text"]
        with served.service.held():
            connection, response = begun(served)
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert [response.readline() for _ in range(4)] == [b": ping\n", b"\n"] * 2
        chunks = data(response.read().decode())
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
        connection.close()
        assert served.metric("doge_export_stream_pings_total") >= 2


def test_comments_come_between_tokens(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def events() -> AsyncGenerator[list[Event]]:
        import asyncio

        yield [Event(0, 5, "a", None)]
        await asyncio.sleep(0.3)
        yield [Event(0, 5, "b", "length")]

    text = scripted(toy, monkeypatch, events, Limits(ping_seconds=0.05))
    first, *between, last, _, empty = text.split("\n\n")
    assert set(between) == {": ping"} and '"a"' in first and '"b"' in last and empty == ""


def test_a_request_that_needs_no_waiting_has_no_comment(toy: Bundle) -> None:
    with inside(toy) as served:
        connection, response = begun(served)
        assert ": ping" not in response.read().decode()
        connection.close()


@pytest.mark.parametrize("first_seconds", [0.05, 30])
def test_a_client_that_leaves_before_the_first_token(toy: Bundle, first_seconds: float) -> None:
    """After the headers and before them."""
    body = json.dumps(BODY | {"stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with inside(toy, Limits(first_seconds=first_seconds)) as served, served.service.held():
        opened = served.raw(head.encode())
        if first_seconds < 1:
            assert opened.recv(12) == b"HTTP/1.1 200"
        until(lambda: served.service._tasks)
        (task,) = served.service._tasks
        assert not task.job.cancelled
        opened.close()
        until(lambda: task.job.cancelled)


def scripted(toy: Bundle, monkeypatch: pytest.MonkeyPatch, events: Any, limits: Limits | None = None) -> str:
    """The stream of a service that gives `events`."""

    class Task:
        def __init__(self) -> None:
            self.events = events

        def cancel(self) -> None:
            """Nothing runs."""

    with inside(toy, limits) as served:
        monkeypatch.setattr(served.service, "start", lambda request: Task())
        connection, response = begun(served)
        text = response.read().decode()
        assert response.status == 200
        connection.close()
        cut = served.metric("doge_export_generations_cut_total")
        assert cut == (0 if '"error"' not in text else 1)
        monkeypatch.undo()
    return text


@pytest.mark.parametrize(
    ("error", "sentence", "kind"),
    [
        (DogeExportError("No more."), "No more.", "invalid_request_error"),
        (Ended(), "The server is ending.", "server_error"),
        (RuntimeError("a bug"), "Internal error; the server's log has it.", "server_error"),
    ],
)
def test_an_error_after_the_first_token_is_an_event(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str, kind: str
) -> None:
    async def events() -> AsyncGenerator[list[Event]]:
        yield [Event(0, 5, "a", None)]
        raise error

    *_, last = data(scripted(toy, monkeypatch, events))
    assert (last["error"]["message"], last["error"]["type"]) == (sentence, kind)


def test_an_error_after_the_headers_is_an_event_too(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def events() -> AsyncGenerator[list[Event]]:
        import asyncio

        await asyncio.sleep(0.2)
        for error in [DogeExportError("It showed late.")]:
            raise error
        yield []

    (only,) = data(scripted(toy, monkeypatch, events, Limits(first_seconds=0.01)))
    assert only["error"]["message"] == "It showed late."
