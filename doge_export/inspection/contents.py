"""What is in a bundle: parameters by role, operators, files; and that onnxruntime loads it."""

__all__ = ["ROLES", "Inspection", "Operators", "Parameters", "inspect_bundle"]

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent

if TYPE_CHECKING:
    import onnx

#: Role -> what the name of such a weight contains. The first row that fits counts.
ROLES: dict[str, tuple[str, ...]] = {
    "embedding": ("embed_tokens",),
    "head": ("lm_head",),
    "experts": ("down_embed", "up_embed"),
    "router": ("router_gate",),
    "norms": ("norm",),  # q_norm and k_norm too, though they sit in the attention
    "attention": ("self_attn",),
    "mlp": ("mlp",),
    "residuals": ("residual",),
}

#: A matrix that lost its name on the way is still a weight; anything else without a role is a constant.
_UNNAMED = "unnamed"
_OTHER = "constants"
_STANDARD = ("", "ai.onnx")
_OURS = "doge"


@dataclass(frozen=True)
class Parameters:
    """The tensors of one role and one dtype. `bytes` holds scales and zero points of a quantized one, which
    are neither tensors nor parameters of the model."""

    role: str
    dtype: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Operators:
    """How often an operator occurs, subgraphs included. `body`: the file says what it computes.

    `kernels`: how many of them onnxruntime runs on kernels of the native library, the others on bodies;
    None for a standard operator, and where the graph was not loaded.
    """

    domain: str
    name: str
    count: int
    body: bool
    kernels: int | None = None


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` shows. `operators` are those of model.onnx, `decode` those of decode.onnx."""

    bundle: Bundle
    parameters: tuple[Parameters, ...]
    opsets: dict[str, int]
    operators: tuple[Operators, ...]
    onnxruntime: str | None
    library: str | None = None
    decode: tuple[Operators, ...] = ()

    @property
    def total(self) -> int:
        """Number of parameters; what is no weight of the model does not count."""
        return sum(row.parameters for row in self.parameters if row.role != _OTHER)

    def as_dict(self) -> dict[str, Any]:
        """The inspection as a dict, for JSON."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "format": manifest.format,
            "doge_export": manifest.doge_export,
            "versions": manifest.versions,
            "options": manifest.options.to_dict(),
            "graph": {
                "inputs": [asdict(spec) for spec in manifest.inputs],
                "outputs": [asdict(spec) for spec in manifest.outputs],
            },
            "cache": asdict(manifest.cache),
            "call": manifest.call,
            "bytes": self.bundle.model_bytes,
            "parameters": {
                "total": self.total,
                "bytes": sum(row.bytes for row in self.parameters if row.role != _OTHER),
                "by_role": [asdict(row) for row in self.parameters],
            },
            "opsets": self.opsets,
            "operators": [asdict(row) for row in self.operators],
            "decode_operators": [asdict(row) for row in self.decode],
            "files": [
                {"name": name, **asdict(entry), "verified": True} for name, entry in manifest.files.items()
            ],
            "loaded": self.onnxruntime is not None,
            "onnxruntime": self.onnxruntime,
            "min_onnxruntime": manifest.options.min_onnxruntime,
            "library": self.library,
        }


def inspect_bundle(bundle: Bundle, load: bool = True, progress: Progress = silent) -> Inspection:
    """Verify the files, read the graph without its weights, and load it in onnxruntime if `load`.

    `progress` gets these steps.

    Raises:
        DogeExportError: a file is not what the manifest says, or onnxruntime refuses the graph.
    """
    progress.planned(3 if load else 2)
    progress(0, "hashing files")
    bundle.verify()
    progress(1, "reading the graph")
    model = _read(bundle.model_path)
    decode = _read(bundle.decode_path) if bundle.decode_path else None
    session = version = None
    if load:
        progress(1, "loading in onnxruntime")
        import onnxruntime

        from doge_export.runtime.onnx_session import OnnxSession

        session = OnnxSession.open(bundle)
        version = onnxruntime.__version__
    return Inspection(
        bundle,
        _parameters(model.graph.initializer),
        {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        _operators(model, session.kernels if session else None),
        version,
        str(session.library) if session and session.library else None,
        _operators(decode, session.decode_kernels if session else None) if decode else (),
    )


def _read(path: Path) -> "onnx.ModelProto":
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors differ between its implementations
        raise DogeExportError(f"{path} is not an ONNX file: {error}.") from None


def _role(tensor: "onnx.TensorProto") -> str:
    other = _UNNAMED if sum(size > 1 for size in tensor.dims) > 1 else _OTHER
    return next((role for role, parts in ROLES.items() if any(part in tensor.name for part in parts)), other)


def _parameters(initializers: "Iterable[onnx.TensorProto]") -> tuple[Parameters, ...]:
    tensors = {tensor.name: tensor for tensor in initializers}
    rows: dict[tuple[str, str], list[int]] = {}
    for tensor in tensors.values():
        dtype, bits = _dtype(tensor.data_type)
        count = math.prod(tensor.dims)
        figures = (1, count, (count * bits + 7) // 8)
        stem, _, part = tensor.name.rpartition(".")
        if (
            part in ("scale", "zero", "global_scale")
            and (scaled := tensors.get(f"{stem}.weight")) is not None
        ):
            dtype, _ = _dtype(scaled.data_type)
            figures = (0, 0, figures[-1])
        row = rows.setdefault((_role(tensor), dtype), [0, 0, 0])
        for column, value in enumerate(figures):
            row[column] += value
    order = [*ROLES, _UNNAMED, _OTHER]
    keys = sorted(rows, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(Parameters(role, dtype, *rows[role, dtype]) for role, dtype in keys)


def _dtype(data_type: int) -> tuple[str, int]:
    """The name as numpy writes it, and the bits of one element."""
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type).lower()
    if name == "string":
        return name, 0
    known = {"float": "float32", "double": "float64"}.get(name, name)
    packed = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}
    return known, packed.get(known) or onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8


def _operators(model: "onnx.ModelProto", kernels: Mapping[str, int] | None) -> tuple[Operators, ...]:
    def native(domain: str, name: str) -> int | None:
        if kernels is None or domain != _OURS:
            return None
        # a body may hold nodes of ours too, and they are no nodes of the graph
        return min(kernels.get(name, 0), counts[domain, name])

    bodies = {(function.domain, function.name) for function in model.functions}
    counts = Counter((node.domain, node.op_type) for node in _nodes(model.graph.node))
    return tuple(
        Operators(
            domain or "ai.onnx", name, counts[domain, name], (domain, name) in bodies, native(domain, name)
        )
        # our own first: whether their bodies are there is what one looks for
        for domain, name in sorted(counts, key=lambda key: (key[0] in _STANDARD, key))
    )


def _nodes(nodes: "Iterable[onnx.NodeProto]") -> "Iterator[onnx.NodeProto]":
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
