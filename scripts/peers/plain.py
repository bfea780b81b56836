"""Plain onnxruntime on our bundle, without our library: the function bodies, and a loop of one's own."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from peers import base

_session: Any = None
_manifest: dict[str, Any] = {}


def open(bundle: str, threads: int) -> dict[str, Any]:
    global _session, _manifest
    folder = Path(bundle)
    _manifest = json.loads((folder / "doge_export.json").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    started = time.perf_counter()
    _session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"onnxruntime": onnxruntime.__version__},
        "note": "model.onnx, function bodies, logits of every position",
    }


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    cache = _manifest["cache"]
    shape = (1, cache["kv_heads"], 0, cache["head_dim"])
    wrap = onnxruntime.OrtValue.ortvalue_from_numpy
    past = [wrap(np.zeros(shape, np.float32)) for _ in cache["inputs"]]
    ids, length = np.array([prompt]), len(prompt)
    positions = np.arange(length)[None]
    for _ in range(new_tokens):
        binding = _session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((1, length), np.int64))
        binding.bind_cpu_input("position_ids", positions)
        for name, value in zip(cache["inputs"], past, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name in cache["outputs"]:
            binding.bind_output(name)
        _session.run_with_iobinding(binding)
        logits, *past = binding.get_outputs()
        token = int(logits.numpy()[0, -1].argmax())
        ids, positions = np.array([[token]]), positions[:, -1:] + 1
        length += 1
        yield token


if __name__ == "__main__":
    base.serve(open, tokens)
