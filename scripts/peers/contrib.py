"""onnxruntime's own fused operators on a Llama of the model's shape (`contrib_graph`)."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from peers import base, contrib_graph

_session: Any = None
_shape: Any = None
_slots = 0


def open(shape: dict[str, Any], bits: int, folder: str, threads: int, slots: int = 1024) -> dict[str, Any]:
    global _session, _shape, _slots
    _shape, _slots = base.Shape(**shape), slots
    path = Path(folder) / f"contrib-{bits}.onnx"
    if not path.exists():
        contrib_graph.write(path, _shape, bits, slots)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    started = time.perf_counter()
    _session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"onnxruntime": onnxruntime.__version__},
        "note": "Llama of the same shape: GroupQueryAttention, SkipSimplifiedLayerNormalization, "
        + ("MatMul" if bits == 32 else f"MatMulNBits of {bits} bits"),
    }


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    wrap = onnxruntime.OrtValue.ortvalue_from_numpy
    binding = _session.io_binding()
    cache = (1, _shape.kv_heads, _slots, _shape.head_dim)
    for layer in range(_shape.layers):
        for kind in ("key", "value"):
            buffer = wrap(np.zeros(cache, np.float32))
            binding.bind_ortvalue_input(f"past.{layer}.{kind}", buffer)
            binding.bind_ortvalue_output(f"present.{layer}.{kind}", buffer)
    logits = np.empty((1, 1, _shape.vocab), np.float32)
    binding.bind_ortvalue_output("logits", wrap(logits))
    before, total = np.array([len(prompt) - 1], np.int32), np.array([len(prompt)], np.int32)
    binding.bind_ortvalue_input("seqlens_k", wrap(before))
    binding.bind_ortvalue_input("total_sequence_length", wrap(total))
    binding.bind_ortvalue_input("input_ids", wrap(np.array([prompt])))
    one = np.zeros((1, 1), np.int64)
    for count in range(new_tokens):
        _session.run_with_iobinding(binding)
        token = int(logits[0, 0].argmax())
        one[0, 0] = token
        before += 1
        total += 1
        if count == 0:
            binding.bind_ortvalue_input("input_ids", wrap(one))
        yield token


if __name__ == "__main__":
    base.serve(open, tokens)
