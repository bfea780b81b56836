"""A model's graph as torch traces it, once for all workers: tracing is most of what an export takes, and many
exports of the tests differ only in what is done with the graph afterwards."""

import hashlib
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from doge_export.export import graph
from doge_export.model import DogeForExport

__all__ = ["Traced", "digest"]


class Traced:
    """`doge_export.export.graph.export_graph`, which keeps in `folder` what it made. Only what has the same
    code, configuration and weights, to the bit, is taken from there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, model: DogeForExport, opset: int, max_length: int | None = None) -> ir.Model:
        path = self._folder / f"{digest(model, opset, max_length)}.onnx"
        if path.exists():
            graph._register_schemas()  # another process may have made it
            return ir.load(path)
        made = graph.export_graph(model, opset, max_length)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(ir.to_proto(made).SerializeToString())
        part.rename(path)
        return made


def digest(model: DogeForExport, *options: Any) -> str:
    """Of all that the modules hold."""
    own = vars(torch.nn.Module()).keys()
    digest = hashlib.sha256(repr((model.kv_cache, *options)).encode())
    for name, module in model.named_modules():
        values = {key: value for key, value in vars(module).items() if key not in own - {"training"}}
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        tensors |= {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
        plain = sorted((key, value) for key, value in values.items() if key not in tensors)
        digest.update(repr((name, type(module), plain)).encode())
        for key, tensor in sorted(tensors.items()):
            digest.update(repr((key, tensor.dtype, tensor.shape, tensor.stride())).encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
