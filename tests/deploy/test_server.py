"""The real tritonserver, of nvidia-pytriton, with the Python backend on the CPU: started by run.sh, asked
over HTTP, compared with `doge-export generate`, stopped.

`make` installs it: where it is missing, that is a failure. Its backend is linked with Python's shared
library, which pip cannot install: where the system lacks that, the tests are skipped.
"""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli import main
from doge_export.export.pipeline import export_model
from tests.deploy._triton import new_environment

PROMPT = "My fellow citizens"
SAMPLED = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "seed": 5,
    "max_new_tokens": 40,
}


@dataclass
class Server:
    """A started server; `bundle` is what it serves as `tiny`."""

    bundle: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def open(self, path: str, body: Any = None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        opened = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", data, timeout=60)
        assert isinstance(opened, http.client.HTTPResponse)
        return opened

    def generate(self, **request: Any) -> Any:
        request = {"text_input": PROMPT} | request
        given = {name: value for name, value in request.items() if value is not None}
        with self.open("v2/models/tiny/generate", given) as answer:
            return json.load(answer)

    def stream(self, **request: Any) -> Iterator[dict[str, Any]]:
        request = {"text_input": PROMPT, "stream": True} | request
        with self.open("v2/models/tiny/generate_stream", request) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def refused(self, **request: Any) -> tuple[int, str]:
        """The status and the sentence of an error."""
        with pytest.raises(urllib.error.HTTPError) as raised:
            self.generate(**request)
        with raised.value as answer:
            return answer.code, json.load(answer)["error"]


def expected(server: Server, folder: Path, **options: Any) -> dict[str, Any]:
    """What the command line makes of the same request."""
    arguments = ["generate", str(server.bundle), "-p", PROMPT, "--json", str(folder / "generated.json")]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            arguments += [f"--{name.replace('_', '-')}", str(each)]
    assert main(arguments) == 0
    generated: dict[str, Any] = json.loads((folder / "generated.json").read_text())
    return generated


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    try:
        ctypes.CDLL(library)
    except OSError:
        pytest.skip(f"the system has no {library}")
    root = tmp_path_factory.mktemp("triton")
    bundle = export_model("doge-tiny", root / "bundle", validate=False).bundle.path
    deployed = ["deploy", "triton", str(bundle), "-o", str(root / "repository"), "--name", "tiny"]
    assert main([*deployed, "--instances", "1", "--threads", "1"]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHON": str(new_environment(root / "environment")),
        "XDG_CACHE_HOME": str(root / "cache"),
    }
    log = root / "log"
    options = [
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [root / "repository" / "run.sh", *options], env=environment, stdout=output, stderr=output
        )
    running = Server(bundle, port, process, log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.URLError), running.open("v2/health/ready"):
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0, log.read_text()


def test_greedy(server: Server, tmp_path: Path) -> None:
    wanted = expected(server, tmp_path, temperature=0, max_new_tokens=50)
    answer = server.generate(temperature=0, max_new_tokens=50)
    assert (answer["text_output"], answer["finish_reason"]) == (wanted["text"], wanted["finish_reason"])
    assert len(wanted["ids"]) == 50


def test_sampled_and_streamed(server: Server, tmp_path: Path) -> None:
    wanted = expected(server, tmp_path, **SAMPLED)
    *earlier, last = server.stream(**SAMPLED)
    assert len(earlier) > 10 and {piece["finish_reason"] for piece in earlier} == {""}
    assert "".join(piece["text_output"] for piece in [*earlier, last]) == wanted["text"]
    assert last["finish_reason"] == wanted["finish_reason"] == "length"
    assert server.generate(**SAMPLED)["text_output"] == wanted["text"]


def test_stop(server: Server, tmp_path: Path) -> None:
    whole = expected(server, tmp_path, temperature=0, max_new_tokens=50)["text"]
    stop = ["never to be seen", whole[20:24]]
    wanted = expected(server, tmp_path, temperature=0, stop=stop)
    answer = server.generate(temperature=0, stop=stop)
    assert (answer["text_output"], answer["finish_reason"]) == (wanted["text"], "stop")
    assert len(wanted["text"]) <= 20


def test_several_at_once(server: Server, tmp_path: Path) -> None:
    def ask(seed: int) -> Any:
        return server.generate(**SAMPLED | {"seed": seed})["text_output"]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    wanted = [expected(server, tmp_path, **SAMPLED | {"seed": seed})["text"] for seed in range(6)]
    assert answers == wanted and len(set(answers)) > 1


def test_an_instance_answers_side_by_side(server: Server) -> None:
    long = server.stream(temperature=0, max_new_tokens=10**6)  # minutes
    next(long)
    assert server.generate(temperature=0, max_new_tokens=5)["finish_reason"] == "length"
    long.close()


def test_a_client_that_leaves_frees_its_place(server: Server) -> None:
    for _ in range(33):  # more than there are places
        long = server.stream(temperature=0, max_new_tokens=10**6)
        next(long)
        long.close()
    assert server.generate(temperature=0, max_new_tokens=5)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"text_input": None, "top_k": 1}, "The request has no text_input."),
        ({"max_new_tokens": 0}, "max_new_tokens cannot be 0."),
        ({"temperature": -1}, "temperature cannot be -1.0."),
        ({"top_p": 1.5}, "top_p cannot be 1.5."),
        ({"seed": -1}, "seed cannot be -1."),
        ({"stop": ["a", ""]}, "stop cannot be ('a', '')."),
        (
            {"max_tokens": 5},
            "There is no parameter 'max_tokens'. There are text_input, stream, max_new_tokens",
        ),
        ({"temperature": "hot"}, "non-number"),
        ({"text_input": ["a", "b"]}, "text_input"),
    ],
)
def test_a_bad_request_is_answered(request_: dict[str, Any], sentence: str, server: Server) -> None:
    code, error = server.refused(**request_)
    assert sentence in error and code in (400, 500), (code, error)  # Triton's own are of both kinds
    assert "internal error" not in error
    assert server.generate(max_new_tokens=1)["finish_reason"] == "length"


def test_an_error_in_a_stream(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        list(server.stream(temperature=-1))
    with raised.value as answer:
        assert "temperature cannot be -1.0." in answer.read().decode()


def test_the_server_reads_the_configuration(server: Server) -> None:
    with server.open("v2/models/tiny/config") as answer:
        config = json.load(answer)
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [group["count"] for group in config["instance_group"]] == [1]
    assert {each["name"] for each in config["input"] if not each["optional"]} == {"text_input"}


def test_an_interrupt_stops_it(server: Server) -> None:
    """Last of all; the fixture looks at the exit code."""
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
