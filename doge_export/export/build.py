"""The steps from a loaded model to a file: graph, passes, bodies, and the weights beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from doge_export.export.graph import export_graph
from doge_export.model import DogeForExport
from doge_export.ops import BodyOptions
from doge_export.passes import attach_bodies, pretranspose, simplify
from doge_export.targets import OPSETS, Target

__all__ = ["GraphFile", "build_graph", "save_graph"]

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


@dataclass(frozen=True)
class GraphFile:
    """A graph ready to be written, and what its function bodies were specialised for."""

    model: ir.Model
    options: BodyOptions


def build_graph(
    model: DogeForExport, target: Target, dtype: str, routing: str, max_length: int | None = None
) -> GraphFile:
    """The finished ONNX model of `model` for `target`; `max_length` are the slots of a static cache."""
    config = model.config
    options = BodyOptions(
        dtype=_DTYPES[dtype],
        opset=OPSETS[model.kv_cache],
        static=model.kv_cache == "static",
        sliding_window=config.sliding_window is not None,
        per_token=routing == "per-token",
        norm_topk_prob=config.norm_topk_prob,
        branches=target.branches,
        float64=target.float64,
    )
    exported = export_graph(model, options.opset, max_length)
    pretranspose(exported)  # before folding, which would take small weights for constants
    simplify(exported)
    attach_bodies(exported, options)
    return GraphFile(exported, options)


def save_graph(
    graph: GraphFile, folder: Path, progress: Callable[[int], None] = lambda written: None
) -> None:
    """Write `model.onnx` and `model.onnx.data`; `progress` gets the bytes of each tensor written."""
    ir.save(
        graph.model,
        folder / "model.onnx",
        external_data="model.onnx.data",
        size_threshold_bytes=1024,
        max_workers=1,
        callback=lambda tensor, info: progress(tensor.nbytes),
    )
