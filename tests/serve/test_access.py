"""Who is answered: keys, and pages of other origins."""

import http.client
import itertools
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.serve.access import cors
from doge_export.serve.openapi import ROUTES
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._inside import inside, rest
from tests.serve._running import serving

ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("access") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


def test_without_a_key_only_the_page_and_the_health_answer(toy: Bundle) -> None:
    with inside(toy, keys=["first", "second"]) as served:
        for path, operations in ROUTES.items():
            names = (path.replace("{id}", "toy"), f"{path.rstrip('/')}/")
            for method, name in itertools.product(operations, names):
                status, headers, answer = served.ask(method.upper(), name, {} if method == "post" else None)
                assert status == (200 if path in ("/", "/health") else 401), name
                if status == 401:
                    assert "API key is missing or wrong" in answer["error"]["message"]
                    assert headers["WWW-Authenticate"] == "Bearer"
                    kind = (
                        "authentication_error" if path.startswith("/v1/messages") else "invalid_request_error"
                    )
                    assert answer["error"]["type"] == kind
                    assert answer["error"].get("code") == (None if "type" in answer else "invalid_api_key")
        assert served.ask("GET", "/no/such/route")[0] == 401
        assert served.ask("GET", "/v1/health")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer first"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"x-api-key": "second"}, 200),
        ({"Authorization": "Bearer old", "x-api-key": "first"}, 200),
        ({"Authorization": "Bearer firs"}, 401),
        ({"Authorization": "Bearer firsts"}, 401),
        ({"Authorization": "Bearer first second"}, 401),
        ({"Authorization": "Basic first"}, 401),
        ({"Authorization": "first"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "fïrst"}, 401),
    ],
)
def test_a_key(toy: Bundle, guarded: Any, headers: dict[str, str], status: int) -> None:
    assert guarded.ask("GET", "/v1/models", **headers)[0] == status


@pytest.fixture(scope="module")
def guarded(toy: Bundle) -> Any:
    with inside(toy, keys=["first", "second"], origins=[ORIGIN]) as served:
        yield served


def test_an_unread_body_of_a_stranger_does_not_spoil_the_connection(guarded: Any) -> None:
    connection = guarded.connect()
    for key, status in (("none", 401), ("first", 200)):
        body = b'{"prompt": "a", "max_tokens": 1, "user": "' + b"x" * 300_000 + b'"}'
        connection.request("POST", "/v1/completions", body, {"x-api-key": key})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_pages_of_allowed_origins(guarded: Any) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = guarded.ask("OPTIONS", "/v1/chat/completions", Origin=ORIGIN, **asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "authorization" in headers["Access-Control-Allow-Headers"]
    other = guarded.ask("OPTIONS", "/v1/chat/completions", Origin="https://other.org", **asked)
    assert other[0] == 200 and other[1]["Access-Control-Allow-Origin"] is None
    status, headers, _ = guarded.ask("GET", "/v1/models", Origin=ORIGIN)
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, ORIGIN), "a page may read why"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("https://localhost:8443", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("http://localhost.example.org", False),
        ("http://notlocalhost", False),
        ("http://127.0.0.1:3000.example.org", False),
    ],
)
def test_localhost_is_every_page_of_this_machine(origin: str, allowed: bool) -> None:
    said = _asked(["localhost"], False, origin)
    assert said.get("access-control-allow-origin") == (origin if allowed else None)
    assert "access-control-allow-credentials" not in said


def test_cookies_need_an_option_of_their_own() -> None:
    assert _asked(["*"], False, ORIGIN)["access-control-allow-origin"] == "*"
    said = _asked(["*"], True, ORIGIN)
    assert said["access-control-allow-origin"] == ORIGIN, "a browser takes no * with cookies"
    assert said["access-control-allow-credentials"] == "true"


def _asked(origins: list[str], credentials: bool, origin: str) -> Any:
    """The headers of the answer to a browser's question."""
    asked = {"origin": origin, "access-control-request-method": "POST"}
    middleware = cors(origins, credentials)
    before: Any = middleware.cls(None, **middleware.kwargs)  # type: ignore[call-arg,arg-type]
    return before.preflight_response(Headers(asked)).headers


def test_without_an_origin_no_page_of_another_may_ask(toy: Bundle) -> None:
    with inside(toy) as served:
        status, headers, _ = served.ask("GET", "/v1/models", Origin=ORIGIN)
        assert status == 200 and "Access-Control-Allow-Origin" not in headers
        assert served.ask("OPTIONS", "/v1/models", Origin=ORIGIN)[0] == 405


def test_options_of_the_command(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGE_EXPORT_API_KEY", "one two")
    with serving(toy.path, tmp_path / "log", "--cors", ORIGIN) as running:
        found = []
        for key in ("one", "two", "one two"):
            connection = running.connect()
            connection.request("GET", "/models", headers={"x-api-key": key, "Origin": ORIGIN})
            answer: http.client.HTTPResponse = connection.getresponse()
            found.append(answer.status)
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            connection.close()
        assert found == [200, 200, 401]
        assert "one" not in running.log.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--api-key", ""], "An API key is empty"),
        (["--api-key", "a b"], "has a space"),
        (["--api-key", "ü"], "not ASCII"),
        (["--cors", "example.org"], "'example.org' is no origin"),
        (["--cors", "https://example.org/"], "One is https://example.org"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs is no JSON"),
        (["--chat-template-kwargs", "3"], "--chat-template-kwargs is no object"),
        (["--chat-template-kwargs", '{"tools": 3}'], "chat_template_kwargs cannot set tools"),
    ],
)
def test_wrong_options(
    toy: Bundle, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(toy.path), "--port", "0", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_bytes_that_are_no_text_in_a_key(guarded: Any) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nx-api-key: \xff\xfe\r\n\r\n"
    assert rest(guarded.raw(head)).startswith(b"HTTP/1.1 401")
