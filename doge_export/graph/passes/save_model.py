"""Write a graph without what `onnx_ir.save` writes twice."""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["write"]


def write(model: ir.Model, path: Path, **options: Any) -> None:
    """Write the model as `onnx_ir.save` with these options does, but that also writes the type and shape of
    every initializer beside the initializer: a tenth of the graph of a small model."""
    ir.save(model, path, **options)
    proto = onnx.load(path, load_external_data=False)
    stored = {tensor.name for tensor in proto.graph.initializer}
    values = [value for value in proto.graph.value_info if value.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(values)
    path.write_bytes(proto.SerializeToString(deterministic=True))
