"""The canonical graph: a model's operators without its weights, traced once and lowered many times."""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.graph.operators import OPERATORS
from doge_export.graph.operators.function import DOMAIN, VERSION
from doge_export.graph.passes.simplify import WEIGHTS, simplify
from doge_export.graph.passes.weights_first import weights_first

__all__ = ["DTYPES", "CanonicalGraph", "register_schemas"]

#: `--dtype` -> ONNX's type.
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}

_KEY = "doge_export.canonical"


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph of standard operators and those of the domain `doge`, without their function bodies.

    Weights are inputs of the graph, behind the model's own, by their names in the checkpoint. What depends on
    the target, the types of the weights or their values comes when it is lowered (doge_export.graph.lower).

    Attributes:
        model: the ONNX model; constants of a few bytes are its only initializers.
        dtype: "float32", "float16" or "bfloat16", of weights, arithmetic and cache.
        routing: "reference" or "per-token".
        kv_cache: "growing", "static" or "bounded".
        max_length: the slots of a static cache; None where the caller chooses, and for other caches.
        rotary: the numbers of the rotary embedding's formula (doge_export.model.rope).
    """

    model: onnx.ModelProto
    dtype: str
    routing: str
    kv_cache: str
    max_length: int | None
    rotary: Mapping[str, float]

    @classmethod
    def of_traced(cls, traced: ir.Model, weights: Container[str], **options: Any) -> "CanonicalGraph":
        """Make one of the exporter's graph, which is changed: simplified, its `weights` taken out. A constant
        of torch's may have a module's name too, and stays."""
        simplify(traced)
        graph = traced.graph
        for name, value in list(graph.initializers.items()):
            if name in weights:
                del graph.initializers[name]
                value.const_value = None
                graph.inputs.append(value)
        return cls(ir.to_proto(traced), **options)

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the weights, in the order of the file."""
        return tuple(value.name for value in self.model.graph.input if value.name.startswith(WEIGHTS))

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return int(next(entry.version for entry in self.model.opset_import if entry.domain == ""))

    def with_weights(self, tensors: Mapping[str, ir.TensorProtocol]) -> ir.Model:
        """A graph of its own whose weights are `tensors`, by their names in the checkpoint.

        Raises:
            KeyError: one is missing.
        """
        register_schemas()
        model: ir.Model = ir.from_proto(self._copy())  # its tensors are views of the proto, names too
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        for name in self.weights:
            graph.inputs.remove(value := inputs[name])
            value.const_value = tensors[name]
            graph.initializers[name] = value
        weights_first(graph)
        return model

    def _copy(self) -> onnx.ModelProto:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.model)
        return copied

    def save(self, path: Path) -> None:
        """Write it as an ONNX file, whose metadata say the options."""
        copied = self._copy()
        options = {
            "dtype": self.dtype,
            "routing": self.routing,
            "kv_cache": self.kv_cache,
            "max_length": self.max_length,
            "rotary": dict(self.rotary),
        }
        copied.metadata_props.add(key=_KEY, value=json.dumps(options))
        path.write_bytes(copied.SerializeToString(deterministic=True))

    @classmethod
    def load(cls, path: Path) -> "CanonicalGraph":
        """Read what `save` wrote.

        Raises:
            DogeExportError: it is something else, or damaged.
        """
        try:
            model = onnx.load(path, load_external_data=False)
            (entry,) = [entry for entry in model.metadata_props if entry.key == _KEY]
            model.metadata_props.remove(entry)
            return cls(model, **parse_json(entry.value))
        except OSError as error:
            raise DogeExportError(f"{path} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # protobuf's has no public name
            raise DogeExportError(
                f"{path} is no canonical graph: {error}.", "Export the model again."
            ) from None


def register_schemas() -> None:
    """Let onnx know the operators: exporter, checker and shape inference share one schema. Registering twice
    is an error in onnx."""
    for operator in OPERATORS:
        if not onnx.defs.has(operator.name, VERSION, DOMAIN):
            onnx.defs.register_schema(operator.onnx_schema())
