"""A server in a thread of this process, with limits that the command does not offer, and a client by hand."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session
from doge_export.runtime.scheduling import CacheLimits
from doge_export.serve import TextService
from doge_export.serve.app import build_app
from doge_export.serve.connections import http_config
from doge_export.serve.limits import Limits
from doge_export.serve.registry import Loaded, Offer, Registry
from doge_export.serve.requests import RequestReader


def one(service: TextService, reader: RequestReader) -> Registry:
    """A model that is there already, alone."""
    registry = Registry([Offer(reader.name, lambda: Loaded(service, reader))])
    registry.put(reader.name, Loaded(service, reader))
    return registry


class Known(TextService):
    """A service that can be held."""

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Nothing is generated within the block."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._scheduler, "step", lambda: time.sleep(0.01))
            yield


@dataclass
class Inside:
    registry: Registry
    port: int
    loop: asyncio.AbstractEventLoop
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def service(self) -> Known:
        """What generates, where there is a single model."""
        (state,) = self.registry.states().values()
        assert isinstance(state.service, Known)
        return state.service

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and body, decoded where it is JSON."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {**self.headers, **given})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, answer.headers, json.loads(text) if kind == "application/json" else text

    def post(self, path: str, body: Any) -> Any:
        status, _, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def metric(self, name: str) -> float:
        """The sum over labels."""
        lines = self.ask("GET", "/metrics")[2].splitlines()
        values = [
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
        ]
        assert values, name
        return sum(values)

    def raw(self, data: bytes, receive_buffer: int | None = None) -> socket.socket:
        """A socket by which `data` was sent."""
        opened = socket.socket()
        if receive_buffer is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.settimeout(30)
        opened.connect(("127.0.0.1", self.port))
        opened.sendall(data)
        return opened


def until(so: Callable[[], Any]) -> None:
    """Wait until it is so; a minute is for ever."""
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)


def rest(opened: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := opened.recv(1 << 16):
            received += part
    opened.close()
    return received


@contextlib.contextmanager
def inside(
    bundle: Bundle,
    limits: Limits | None = None,
    *,
    name: str = "toy",
    parallel: int = 2,
    waiting: int = 64,
    caches: CacheLimits | None = None,
    **options: Any,
) -> Generator[Inside]:
    """A server of one model."""
    tokenizer = Tokenizer.load(bundle.path)
    service = Known(Session.open(bundle, 1), tokenizer, parallel, waiting, caches)
    with over(one(service, RequestReader(bundle, tokenizer, name)), limits, **options) as running:
        yield running


@contextlib.contextmanager
def over(
    registry: Registry,
    limits: Limits | None = None,
    *,
    most: int | None = None,
    send_buffer: int | None = None,
    **options: Any,
) -> Generator[Inside]:
    """A server of the registry's models."""
    app = build_app(registry, limits, **options)
    server = uvicorn.Server(http_config(app, limits, most))
    listening = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:  # connections inherit it
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        registry.watch()
        await server.serve(sockets=[listening])
        await registry.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Inside(registry, listening.getsockname()[1], loop)
    finally:
        loop.call_soon_threadsafe(registry.cancel)
        server.should_exit = server.force_exit = True
        thread.join()
