"""Running the blocks of one page, top to bottom, in one folder."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from docs_site.snippets import Command, Snippet, commands

_SECONDS = 900  # for one command or block: a machine may have other work
_PORT = re.compile(r"(?P<before>--(?:http-)?port[ =]|(?:localhost|127\.0\.0\.1)(?::|[\"'], ))(?P<port>\d+)")
_SERVE = re.compile(r"doge-export serve\b(?!.*--port)")
_KILL = re.compile(r"kill %(\d+)")
#: A Python session: runs each file whose name it reads, all in one namespace, and says when one is through.
_SESSION = """
import os, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    path = line.rstrip("\\n")
    exec(compile(open(path, encoding="utf-8").read(), path, "exec"), names)
    sys.stdout.flush()
    os.write(int(sys.argv[1]), b".")
"""


@dataclass
class _Job:
    process: "subprocess.Popen[bytes]"
    log: Path


@dataclass
class PageRun:
    """`folder`: where commands run. `aside`: what the tests need beside it."""

    folder: Path
    aside: Path
    ports: dict[str, str] = field(default_factory=dict)
    jobs: list[_Job] = field(default_factory=list)
    session: "subprocess.Popen[str] | None" = None
    _done: int = -1

    def run(self, snippet: Snippet) -> None:
        if snippet.language == "console":
            for command in commands(snippet):
                self._command(snippet, command)
        else:
            self._python(snippet)

    def end(self) -> None:
        """Stop what still runs."""
        self._end_session()
        for job in self.jobs:
            _stop(job.process)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # One thread: there are as many workers as cores, and threads that wait for each other take time.
        own = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        return os.environ | {"PATH": path} | own

    def _moved(self, text: str) -> str:
        """`text` with a free port for each that a page names: another program may have that one."""
        return _PORT.sub(lambda found: found["before"] + self._free(found["port"]), text)

    def _free(self, port: str) -> str:
        if port not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                self.ports[port] = str(taken.getsockname()[1])
        return self.ports[port]

    def _command(self, snippet: Snippet, command: Command) -> None:
        if stopped := _KILL.fullmatch(command.text):
            _stop(self.jobs[int(stopped[1]) - 1].process)
        elif command.in_background:
            self._start(snippet, command.text.rstrip().removesuffix("&"))
        else:
            code, said = self._finished(self._moved(command.text))
            assert code == command.exit_code, f"{snippet.place}\n$ {command.text}\n{said}"

    def _finished(self, text: str) -> tuple[int | None, str]:
        """The exit code, None where it took too long, and what was printed."""
        process = subprocess.Popen(
            ["bash", "-ec", text],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it started can be ended with it
        )
        try:
            output, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, f"{output.decode(errors='replace')}\nnot through after {_SECONDS} seconds"
        return process.returncode, output.decode(errors="replace")

    def _start(self, snippet: Snippet, text: str) -> None:
        if _SERVE.search(text):
            text += " --port 8000"  # its default, so that it can be moved
        named = _PORT.search(text)
        assert named is not None, f"{snippet.place}: what runs in the background names no --port."
        log = self.aside / f"job-{len(self.jobs)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._moved(text)}"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.jobs.append(_Job(process, log))
        _wait_for(int(self._free(named["port"])), process, f"{snippet.place}\n$ {text}&", log)

    def _python(self, snippet: Snippet) -> None:
        file, log = self.aside / f"block-{snippet.line}.py", self.aside / f"block-{snippet.line}.log"
        file.write_text(self._moved(snippet.text), encoding="utf-8")
        if not snippet.continues:
            self._end_session()
        if self.session is None:
            assert not snippet.continues, f"{snippet.place}: there is no Python block above to go on from."
            self._begin_session(log)
        assert self.session is not None and self.session.stdin is not None
        self.session.stdin.write(f"{file}\n")
        self.session.stdin.flush()
        ready, _, _ = select.select([self._done], [], [], _SECONDS)
        through = bool(ready) and os.read(self._done, 1) == b"."
        assert through, f"{snippet.place}\n" + "".join(each.read_text() for each in self.aside.glob("*.log"))

    def _begin_session(self, log: Path) -> None:
        self._done, end = os.pipe()
        with log.open("wb") as output:
            self.session = subprocess.Popen(
                [Path(sys.executable).parent / "python", "-c", _SESSION, str(end)],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                pass_fds=[end],
            )
        os.close(end)

    def _end_session(self) -> None:
        if self.session is not None:
            assert self.session.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.session.stdin.close()
            try:
                self.session.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.session.kill()
                self.session.wait()
            os.close(self._done)
            self.session = None


def _wait_for(port: int, process: "subprocess.Popen[bytes]", place: str, log: Path) -> None:
    """Return once the port answers."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"{place}\ndoes not answer on its port.\n{log.read_text(errors='replace')}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running(folder: Path) -> Generator[PageRun]:
    run = PageRun(folder / "page", folder / "aside")
    run.folder.mkdir()
    run.aside.mkdir()
    try:
        yield run
    finally:
        run.end()


def run_page(found: Sequence[Snippet], folder: Path) -> None:
    """Run those of a page's blocks that are to be run, in an empty folder below `folder`."""
    with running(folder) as run:
        for snippet in found:
            if snippet.is_run:
                run.run(snippet)
