"""The host's end of a measurement: a worker process that answers requests until it is closed."""

__all__ = ["Worker"]

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from doge_export.core.errors import DogeExportError


class Worker:
    """A Python process that runs `module` and answers with `doge_export.bench.serve`.

    It finds the modules that this process finds, unless another interpreter is named.
    """

    def __init__(
        self,
        module: str,
        python: str = sys.executable,
        path: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        entries = [entry or str(Path.cwd()) for entry in (sys.path if path is None else path)]
        variables = {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(entries)}
        # -P: the folder where a user stands is not searched, unless it was already.
        self._process = subprocess.Popen(
            [python, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            text=True,
            encoding="utf-8",
        )

    def call(self, name: str, **arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            DogeExportError: what the worker raised.
            RuntimeError: the worker failed in another way, or ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            print(json.dumps({"call": name, **arguments}), file=stdin, flush=True)
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" not in answer:
            return answer["result"]
        if answer.get("bug"):
            raise RuntimeError(f"{self._module}: {answer['error']}")
        raise DogeExportError(answer["error"], answer["remedy"])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
