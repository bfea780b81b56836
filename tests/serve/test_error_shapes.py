"""Errors in the shape of the API that was asked, with the client's own name of a field."""

from collections.abc import Generator
from typing import Any

import pytest

from doge_export.serve.limits import Limits
from doge_export.serve.service import Busy, Ended
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._described import SCHEMAS, fits
from tests.serve._inside import Inside, inside

USER = {"role": "user", "content": "a"}
MESSAGES = {"messages": [USER], "max_tokens": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    """One whose cache and bodies are small, and that has a key."""
    folder = tmp_path_factory.mktemp("small") / "toy"
    generation = {"do_sample": False, "eos_token_id": EOS}
    bundle = write_toy_bundle(folder, "static", max_length=40, generation=generation)
    with inside(bundle, Limits(body_bytes=4096), keys=["key"]) as served:
        served.headers["x-api-key"] = "key"
        yield served


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/messages/count_tokens", "/v1/messages/", "/v1/completions"]
)
@pytest.mark.parametrize(
    ("method", "key", "size", "status", "kind"),
    [
        ("POST", "", 0, 401, "authentication_error"),
        ("GET", "key", 0, 405, "invalid_request_error"),
        ("POST", "key", 9999, 413, "request_too_large"),
        ("POST", "key", 0, 400, "invalid_request_error"),
    ],
)
def test_what_stands_before_the_routes(
    small: Inside, path: str, method: str, key: str, size: int, status: int, kind: str
) -> None:
    found, headers, answer = small.ask(method, path, b"x" * size, x_api_key=key)
    assert found == status
    if "messages" in path:
        assert fits(answer, SCHEMAS["MessagesError"]) and answer["error"]["type"] == kind
    else:
        assert fits(answer, SCHEMAS["Error"])
    assert ("Allow" in headers) == (status == 405) and ("WWW-Authenticate" in headers) == (status == 401)


def test_a_route_that_there_is_not(small: Inside) -> None:
    status, _, answer = small.ask("POST", "/v1/messages/batches", {})
    assert (status, answer["type"], answer["error"]["type"]) == (404, "error", "not_found_error")
    status, _, answer = small.ask("POST", "/v1/messages_of_mine", {})
    assert status == 404 and fits(answer, SCHEMAS["Error"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(Busy(), 529, "overloaded_error"), (Ended(), 529, "overloaded_error"), (OSError(), 500, "api_error")],
)
def test_what_stands_behind_them(
    small: Inside, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, kind: str
) -> None:
    def failing(request: Any) -> Any:
        raise error

    monkeypatch.setattr(small.service, "start", failing)
    found, _, answer = small.ask("POST", "/v1/messages", MESSAGES)
    assert found == status and fits(answer, SCHEMAS["MessagesError"]) and answer["error"]["type"] == kind
    found, _, answer = small.ask("POST", "/v1/chat/completions", {"messages": [USER]})
    assert found == {529: 503}.get(status, status) and fits(answer, SCHEMAS["Error"])
    assert answer["error"]["type"] == "server_error"


LONG = {"role": "user", "content": "a b " * 30}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("completions", {"prompt": "a", "max_tokens": 99}, "max_tokens"),
        ("completions", {"prompt": LONG["content"]}, "prompt"),
        ("chat/completions", {"messages": [USER], "max_completion_tokens": 99}, "max_completion_tokens"),
        ("chat/completions", {"messages": [LONG]}, "messages"),
        ("responses", {"input": "a", "max_output_tokens": 99}, "max_output_tokens"),
        ("responses", {"input": LONG["content"]}, "input"),
        ("messages", {"messages": [USER], "max_tokens": 99}, "max_tokens"),
        ("messages", {"messages": [LONG], "max_tokens": 9}, "messages"),
        ("messages", {"messages": [USER | {"content": "\ud800"}], "max_tokens": 9}, "messages"),
        ("responses", {"input": "\ud800"}, "input"),
    ],
)
def test_what_the_runtime_finds_has_the_clients_name(
    small: Inside, path: str, body: dict[str, Any], field: str, stream: bool
) -> None:
    status, _, answer = small.ask("POST", f"/v1/{path}", body | {"stream": stream})
    assert status == 400, answer
    assert answer["error"]["message"].startswith(f"{field}: ")
    assert path == "messages" or (answer["error"]["param"], answer["error"]["code"]) == (
        field,
        "invalid_value",
    )
