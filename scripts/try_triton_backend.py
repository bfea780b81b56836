"""Serve a fixture by Triton's onnxruntime backend, and compare its logits and its text with ours.

    .venv/bin/python scripts/try_triton_backend.py --backends build/backends

`--backends` is a folder with `onnxruntime/libtriton_onnxruntime.so`, which no package carries:
docs/lab/2026-11-26-serving.md says how one was built. The server is by default the one of nvidia-pytriton.
Each kind of export is deployed by `deploy triton --backend onnxruntime`, started by its run.sh, and read in
pieces: padded rows, then single tokens, with the cache going back and forth. Exit code 1 where a model is
refused, a number differs by more than --limit, or a text differs.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.core.bundle import Bundle
from doge_export.core.native_library import plugin_library
from doge_export.core.tokenizer import Tokenizer
from doge_export.deploy import deploy_triton
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import GenerationDefaults, Session, generate
from doge_export.runtime.cache import Cache
from doge_export.runtime.model_inputs import ModelInputs, call_feed, empty_cache
from doge_export.runtime.session import checked_call

#: What is served: the model, and the options of its export.
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("doge-tiny", {}),
    ("doge-tiny", {"kv_cache": "static", "max_length": 64}),
    ("doge-tiny", {"kv_cache": "bounded"}),
    ("doge-tiny", {"dtype": "float16"}),
    ("doge-tiny", {"precision": "int8"}),
    ("doge-tiny", {"precision": "int4"}),
    ("doge-tiny", {"target": "onnx"}),
    ("doge-tiny-moe", {}),
    ("doge-tiny-moe", {"routing": "per-token", "kv_cache": "bounded"}),
)
PROMPT = "My fellow citizens"
_TYPES: dict[np.dtype[Any], str] = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.float16): "FP16",
    np.dtype(np.int64): "INT64",
}
_NEW_TOKENS = 40
_SINGLE = 6  # tokens that are read one by one
_ROOT = Path(__file__).resolve().parent.parent
_SERVER = _ROOT / ".venv/triton-server/pytriton/tritonserver/bin/tritonserver"


class Refused(Exception):
    """What the server says of a model or a request."""


@dataclass(frozen=True)
class ServedCache:
    """The cache as a client keeps it: arrays that go to the server with each call."""

    past: ModelInputs
    capacity: int | None
    streams: bool
    length: int = 0


class ServedSession(Session):
    """Steps that a server's model `name` at `url` runs."""

    def __init__(self, bundle: Bundle, url: str, name: str) -> None:
        self.bundle = bundle
        self._url = f"{url}/v2/models/{name}/infer"
        self._outputs = [spec.name for spec in bundle.manifest.outputs]
        self._rope = any(spec.name == "rope_length" for spec in bundle.manifest.inputs)

    @property
    def versions(self) -> Mapping[str, str]:
        return {}

    def new_cache(self, batch: int) -> ServedCache:
        spec = self.bundle.manifest.cache
        past = empty_cache(spec, batch, spec.dtype)
        return ServedCache(past, spec.max_length, spec.kind == "bounded")

    def step(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
        rope_length: int = 0,
        last: bool = False,
    ) -> tuple[npt.NDArray[np.float32], ServedCache]:
        assert isinstance(cache, ServedCache)
        sequence = checked_call(input_ids, attention_mask, position_ids, cache)[1]
        spec = self.bundle.manifest.cache
        rope = rope_length if self._rope else None
        feed = call_feed(spec, input_ids, attention_mask, position_ids, rope) | cache.past
        outputs = self._infer(feed)
        past = {name: outputs[output] for name, output in zip(spec.inputs, spec.outputs, strict=True)}
        logits = outputs["logits"][:, -1:] if last else outputs["logits"]
        kept = ServedCache(past, cache.capacity, cache.streams, cache.length + sequence)
        return logits.astype(np.float32), kept

    def _infer(self, feed: ModelInputs) -> ModelInputs:
        """One request of KServe's protocol with Triton's binary extension: a JSON head, then the arrays."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        head = {
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape or (1,),
                    "datatype": _TYPES[array.dtype],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in self._outputs],
        }
        text = json.dumps(head).encode()
        body = b"".join([text, *(array.tobytes() for array in arrays.values())])
        request = urllib.request.Request(self._url, body, {"Inference-Header-Content-Length": str(len(text))})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                size, content = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        outputs, at = {}, size
        for entry in json.loads(content[:size])["outputs"]:
            end = at + entry["parameters"]["binary_data_size"]
            dtype = next(dtype for dtype, name in _TYPES.items() if name == entry["datatype"])
            outputs[entry["name"]] = np.frombuffer(content[at:end], dtype).reshape(entry["shape"])
            at = end
        return outputs


@contextlib.contextmanager
def served(repository: Path, backends: Path, server: Path, log: Path) -> Iterator[tuple[str, int]]:
    """The address of a server that run.sh started, and its process.

    Raises:
        Refused: it does not start, or not with this model.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(repository / "run.sh"), f"--backend-directory={backends.resolve()}", f"--http-port={port}"),
        *("--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"),
    ]
    with log.open("wb") as output:
        environment = os.environ | {"TRITONSERVER": str(server)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{url}/v2/health/ready"):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                match = re.search(r"failed to load 'tiny' version 1: (.*)\"", log.read_text())
                raise Refused(match[1] if match else log.read_text())
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def logits(session: Session, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits of `ids` [rows, length], row by row one token of padding more in front; half of it in one call,
    a quarter in the next, then single tokens."""
    rows, length = ids.shape
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, :row] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    cache, parts = session.new_cache(rows), []
    edges = [0, length // 2, length - _SINGLE, *range(length - _SINGLE + 1, length + 1)]
    for start, end in itertools.pairwise(edges):
        covered = mask[:, start:end] if cache.streams else mask[:, :end]
        part, cache = session.step(ids[:, start:end], covered, positions[:, start:end], cache, length)
        parts.append(part)
    whole: npt.NDArray[np.float32] = np.concatenate(parts, axis=1)[mask.astype(bool)]
    return whole


def compared(model: str, settings: Mapping[str, Any], backends: Path, server: Path, root: Path) -> list[str]:
    """The cells of a row of the table: how far the logits are apart at most, and whether kernels and text are
    ours."""
    options = ExportOptions.resolve(**settings)
    bundle = export_model(model, root / "bundle", options, validate=False).bundle
    deploy_triton(
        bundle.path, root / "repository", backend="onnxruntime", name="tiny", threads=1, instances=2
    )
    ours = Session.open(bundle, threads=1)
    random = np.random.default_rng(0).integers(3, bundle.config.vocab_size, (3, 33))
    tokenizer = Tokenizer.load(bundle.path)
    prompts = [tokenizer.encode(PROMPT)]
    greedy = GenerationDefaults.of(bundle).changed(max_new_tokens=_NEW_TOKENS, temperature=0.0)
    with served(root / "repository", backends, server, root / "log") as (url, process):
        maps = Path(f"/proc/{process}/maps").read_text()
        theirs = ServedSession(bundle, url, "tiny")
        apart = float(np.abs(logits(theirs, random) - logits(ours, random)).max())
        texts = [
            generate(session, prompts, greedy, tokenizer).completions[0].text for session in (ours, theirs)
        ]
    kernels = f"{root}/repository/tiny/1/{plugin_library().name}" in maps
    same = texts[0] == texts[1] != ""
    return [f"{apart:.1e}", "yes" if kernels else "no", "the same" if same else "ANOTHER"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", type=Path, required=True)
    parser.add_argument("--server", type=Path, default=_SERVER)
    parser.add_argument("--limit", type=float, default=1e-4)
    arguments = parser.parse_args()
    failed = False
    print("| model | options | largest difference of logits | our library | text |\n|---|---|---|---|---|")
    for model, settings in KINDS:
        words = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings.items())
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = compared(model, settings, arguments.backends, arguments.server, Path(folder))
                failed |= float(cells[0]) > arguments.limit or cells[-1] != "the same"
            except Refused as error:
                cells, failed = [f"refused: {error}", "", ""], True
        print(f"| {model} | {' | '.join([words, *cells])} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
