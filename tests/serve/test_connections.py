"""What clients leave undone: half a request, a body that does not come, a response that nobody reads."""

import contextlib
import http.client
import json
import logging
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.bundle import Bundle
from doge_export.serve.limits import Limits
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._inside import Inside, inside, rest, until
from tests.serve._running import serving

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"prompt": "a", "max_tokens": 2}'


def head(length: int, *more: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: a", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def padded(size: int) -> bytes:
    return BODY + b" " * (size - len(BODY))


def answer(opened: socket.socket) -> tuple[int, Any]:
    """Status and body of the next response."""
    response = http.client.HTTPResponse(opened)
    response.begin()
    return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("connections") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


def test_half_a_request_is_not_waited_for_for_ever(toy: Bundle) -> None:
    with inside(toy, Limits(header_seconds=0.3)) as served:
        for begun in (b"", b"GET", b"GET /health HTTP/1.1\r\nHost: a\r\n"):
            assert rest(served.raw(begun)) == b""
        dripping = served.raw(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):  # each byte in time, and the whole never
            for _ in range(1000):
                dripping.sendall(b"a")
                time.sleep(0.05)
        dripping.close()
        second = served.raw(GET)
        assert answer(second)[0] == 200
        second.sendall(b"GET /hea")  # on a connection that was used already
        assert rest(second) == b""


def test_a_connection_is_kept_for_the_next_request(toy: Bundle) -> None:
    with inside(toy, Limits(header_seconds=0.2)) as served:
        opened = served.raw(GET)
        for _ in range(2):
            assert answer(opened)[0] == 200
            time.sleep(0.4)  # longer than a head may take
            opened.sendall(head(len(BODY)) + BODY)
        opened.close()


def test_a_connection_is_not_kept_for_ever(toy: Bundle) -> None:
    limits = Limits(body_bytes=100, keep_alive_seconds=0.2)
    with inside(toy, limits) as served:
        # Of the last request the body comes after the response, and nobody reads it.
        for sent, later in ((GET, b""), (head(len(BODY)) + BODY, b""), (head(200), padded(200))):
            opened = served.raw(sent)
            assert answer(opened)[0] in (200, 413)
            opened.sendall(later)
            assert rest(opened) == b""


def test_a_body_that_does_not_come(toy: Bundle) -> None:
    with inside(toy, Limits(body_seconds=0.3)) as served:
        for sent in (head(100), head(100) + BODY):
            opened = served.raw(sent)
            status, said = answer(opened)
            assert status == 408 and "did not come within 0.3 seconds" in said["error"]["message"]
            assert rest(opened) == b""
        assert served.post("/v1/completions", json.loads(BODY))["usage"]["completion_tokens"] == 2


def test_a_body_that_comes_slowly_earns_its_time(toy: Bundle) -> None:
    with inside(toy, Limits(body_seconds=0.5, body_bytes_a_second=1)) as served:
        opened = served.raw(head(len(BODY)) + BODY[:20])
        time.sleep(1)
        opened.sendall(BODY[20:])
        assert answer(opened)[0] == 200
        opened.close()


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(toy: Bundle) -> None:
    with inside(toy, Limits(body_bytes=1000, body_seconds=0.5)) as served:
        opened = served.raw(head(200_000))
        status, said = answer(opened)
        assert status == 413 and "larger than 1000 bytes" in said["error"]["message"]
        opened.sendall(b" " * 200_000 + head(len(BODY)) + BODY)  # the connection goes on after it
        assert answer(opened)[0] == 200
        opened.close()
        for path in (b"/v1/completions", b"/no/such/route"):
            opened = served.raw(head(200_000).replace(b"/v1/completions", path))
            assert answer(opened)[0] in (404, 413)
            assert rest(opened) == b"", "nor is it for ever"


def test_a_body_that_does_not_say_its_size(toy: Bundle) -> None:
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with inside(toy, Limits(body_bytes=1000)) as served:
        for size, expected in ((900, 200), (1001, 413)):
            opened = served.raw(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (size, padded(size)))
            assert answer(opened)[0] == expected
            opened.close()


@contextlib.contextmanager
def unfinished(served: Inside, size: int, chunked: bool) -> Any:
    """A body that has begun, and ends with the block."""
    start, end = padded(size)[:-1], padded(size)[-1:]
    if chunked:
        begin = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        opened = served.raw(begin + b"%x\r\n%s\r\n" % (len(start), start))
    else:
        opened = served.raw(head(size) + start)
    yield
    opened.sendall(b"1\r\n%s\r\n0\r\n\r\n" % end if chunked else end)
    assert answer(opened)[0] == 200
    opened.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_wait_for_each_other_and_small_ones_do_not(toy: Bundle, chunked: bool) -> None:
    limits = Limits(small_bytes=100, large_bodies=1, body_seconds=0.5, body_bytes_a_second=1)
    with inside(toy, limits) as served:
        with unfinished(served, 500, chunked):
            time.sleep(0.1)
            status, headers, said = served.ask("POST", "/v1/completions", padded(400))
            assert (status, headers["Retry-After"]) == (503, "1") and "Too many" in said["error"]["message"]
            assert served.ask("POST", "/tokenize", {"content": "a"})[0] == 200
        assert served.ask("POST", "/v1/completions", padded(400))[0] == 200


def test_bodies_have_a_number(toy: Bundle) -> None:
    with inside(toy, Limits(small_bodies=1)) as served:
        with unfinished(served, 50, False):
            time.sleep(0.1)
            assert served.ask("POST", "/v1/completions", BODY)[0] == 503
            assert served.ask("GET", "/health")[0] == 200
        assert served.ask("POST", "/v1/completions", BODY)[0] == 200


def test_what_is_no_http(toy: Bundle) -> None:
    garbled = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"nonsense\r\n"
    with inside(toy) as served:
        for sent, status in (
            (b"nonsense\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\n\r\n", 400),  # without Host
            (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nA: " + b"x" * (1 << 20), 431),
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS
            (garbled, 400),
        ):
            with contextlib.closing(served.raw(sent)) as opened:
                found, said = answer(opened)
                assert (found, "This is no HTTP request" in said["error"]["message"]) == (status, True)
                opened.sendall(b"more")
                assert opened.recv(1) == b""
        both = rest(served.raw(GET + b"nonsense\r\n\r\n"))
        assert both.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 400" in both and b"no HTTP request" in both


def test_what_is_no_http_after_the_response(toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of a body that was refused already: there is nothing to say any more."""
    begun = (
        head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"65\r\n"
        + b"x" * 101
        + b"\r\n"
    )
    with inside(toy, Limits(body_bytes=100)) as served:
        opened = served.raw(begun)
        assert answer(opened)[0] == 413
        opened.sendall(b"nonsense\r\n")
        assert rest(opened) == b""
    assert caplog.records == []


def test_a_bug_leaves_the_connection_usable(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Any) -> Any:
        raise RuntimeError("a bug")

    with inside(toy) as served, caplog.at_level(logging.WARNING):
        connection = served.connect()
        for start, status in ((broken, 500), (served.service.start, 200), (broken, 500)):
            monkeypatch.setattr(served.service, "start", start)
            connection.request("POST", "/v1/completions", BODY)
            response = connection.getresponse()
            said = json.loads(response.read())
            assert response.status == status
            assert connection.sock is not None, "it is the same connection"
            if status == 500:
                assert said["error"]["type"] == "server_error" and "a bug" not in str(said)
        connection.close()
        assert 'status="500"} 2.0' in served.ask("GET", "/metrics")[2]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_more_connections_than_descriptors_are_told_so(toy: Bundle) -> None:
    with inside(toy, most=2) as served:
        kept = [served.raw(GET) for _ in range(2)]
        assert [answer(each)[0] for each in kept] == [200, 200]
        status, said = answer(refused := served.raw(b""))
        assert status == 503 and "Too many connections" in said["error"]["message"]
        for each in (*kept, refused):
            each.close()
        until(lambda: served.ask("GET", "/health")[0] == 200)


def test_a_client_that_does_not_read_holds_no_slot(tmp_path: Path) -> None:
    endless = write_toy_bundle(tmp_path / "toy", generation={"do_sample": False})
    body = json.dumps({"prompt": "a", "max_tokens": 10**6, "stream": True, "n": 16}).encode()
    limits = Limits(write_seconds=0.3)
    with inside(endless, limits, parallel=1, send_buffer=4096) as served:
        opened = served.raw(head(len(body)) + body, receive_buffer=4096)
        until(lambda: served.service._tasks)
        until(lambda: not served.service._tasks)
        assert served.metric("doge_export_generations_cut_total") == 1
        opened.close()
        assert served.ask("POST", "/v1/completions", BODY)[0] == 200


def test_a_response_that_nobody_reads_is_dropped(toy: Bundle) -> None:
    """What is left of it waits in the server, and its connection with it."""
    limits = Limits(keep_alive_seconds=0.3, write_seconds=0.3)
    with inside(toy, limits, send_buffer=4096) as served:
        one = b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"  # its response names the path
        last = one.replace(b"Host: a", b"Host: a\r\nConnection: close")
        for asked in (one * 20, one * 5, one * 4 + last):  # five are less than what makes the server wait
            opened = served.raw(asked, receive_buffer=4096)
            time.sleep(1)
            assert len(rest(opened)) < asked.count(b"GET") * 8000, "the rest is gone"


def test_no_descriptor_is_left(toy: Bundle, tmp_path: Path) -> None:
    """New connections wait (asyncio) or are closed (uvloop), and nothing else changes."""
    with serving(toy.path, tmp_path / "log") as running:
        open_before = running.connect()
        open_before.request("GET", "/health")
        assert open_before.getresponse().read()
        pid = running.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[1]))
        waiting = [running.connect() for _ in range(3)]
        for each in waiting:
            with contextlib.suppress(OSError):
                each.request("GET", "/health")
        time.sleep(1.2)  # it has tried again by then
        open_before.request("GET", "/health")
        assert open_before.getresponse().status == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for each in waiting:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert each.getresponse().status == 200
            each.close()
        assert running.request("GET", "/health")[0] == 200
        log = running.log.read_text()
        assert log.count("New connections wait") <= 1 and "Traceback" not in log
        open_before.close()


def test_an_unfinished_body_does_not_keep_the_server_from_ending(toy: Bundle, tmp_path: Path) -> None:
    with serving(toy.path, tmp_path / "log") as running:
        connection = running.connect()
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        assert running.request("GET", "/health")[0] == 200
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # two at once are one
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=20) == 0, "a body has 30 seconds"
        connection.close()
        assert "Traceback" not in running.log.read_text()
