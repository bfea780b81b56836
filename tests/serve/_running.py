"""A real server: the command in a process of its own."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMAND = [sys.executable, "-c", "import sys; from doge_export.cli import main; sys.exit(main())"]


@dataclass
class Running:
    """The process, and where it listens."""

    process: "subprocess.Popen[str]"
    url: str
    model: str
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded body; a `body` that is no bytes goes as JSON."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if "json" in (answer.headers["Content-Type"] or "") else text

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.request("POST", path, body)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """The exit code after the signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Generator[Running]:
    command = [*COMMAND, "serve", str(bundle), "--port", "0", "--json", "-", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    running: Running | None = None
    try:
        assert process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            assert line, log.read_text()
            lines += line
        said = json.loads(lines)
        running = Running(process, said["url"], said["model"], log)
        yield running
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
