"""A whole exported model with its operators on plugins, beside onnxruntime on the file as it was exported."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from doge_export.graph.operators import BodyOptions
from doge_export.triton.bodies import attach_plugins
from tests.triton._run import run_model


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_exported_model_on_plugins(exported: Callable[..., tuple[Any, Any]], cache: str) -> None:
    """Experts included, past the window, and then one more token."""
    options = {"target": "onnx", "kv_cache": cache, "max_length": 20 if cache == "static" else None}
    layers = 2 if cache == "growing" else 1
    given = {name: value for name, value in options.items() if value}
    _, bundle = exported(given, is_moe=True, num_hidden_layers=layers)
    path = bundle.path / "model.onnx"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    proto = onnx.load(path)
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    model = ir.from_proto(proto)
    attach_plugins(model, BodyOptions(static=cache == "static", opset=opset))
    rng, cached = torch.Generator().manual_seed(0), {}
    for at, length in ((0, 14), (14, 1)):
        slots = 20 if cache == "static" else at + length
        feed = {
            "input_ids": torch.randint(3, 250, (1, length), generator=rng),
            "attention_mask": torch.ones(1, slots, dtype=torch.int64),
            "position_ids": torch.arange(at, at + length)[None],
        }
        for value in session.get_inputs():
            if value.name.startswith("past_key_values"):
                shape = [1 if i == 0 else size for i, size in enumerate(value.shape)]
                shape = [
                    size if isinstance(size, int) else (20 if cache == "static" else 0) for size in shape
                ]
                feed[value.name] = cached.get(value.name, torch.zeros(shape))
            elif value.name == "cache_position":
                feed[value.name] = torch.tensor([at])
        wanted = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        got = run_model(model, dict(feed)).outputs
        names = [output.name for output in session.get_outputs()]
        np.testing.assert_allclose(got["logits"], wanted[names.index("logits")], rtol=1e-4, atol=2e-5)
        for name, array in zip(names, wanted, strict=True):
            cached[name.replace("present", "past_key_values")] = torch.from_numpy(array)
