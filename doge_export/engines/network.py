"""A bundle's graph in TensorRT: parsed, and what the parsed network is made of."""

__all__ = ["Network", "parse", "summary"]

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from doge_export.graph.passes.inline_bodies import inline_bodies
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.kinds import Opened
from doge_export.runtime.tensorrt.refusals import Log, builder_missing, new_log, parser_refusal


@dataclass(frozen=True)
class Network:
    """`definition` is TensorRT's; it reads from `parser` and `builder` as long as it lives. `names`: of
    the ONNX graph's nodes and constants, which are those of the layers. `weights`: bytes of what the file
    stores."""

    definition: Any
    builder: Any
    parser: Any
    log: Log
    names: tuple[str, ...]
    weights: int
    plugins: bool = False


def parse(opened: Opened, path: Path, plugins: bool = False) -> Network:
    """Read the graph at `path` into a strongly typed network. `plugins`: some of its nodes are TensorRT
    plugins of doge_export.triton, whose kernels are compiled for the GPU of this machine while the engine is
    built.

    Raises:
        DogeExportError: the parser refuses a node, the builder does not start, or Triton is not installed.
    """
    trt = opened.trt
    model = ir.load(path)
    inline_bodies(model)
    log = new_log(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # pybind11's words for a builder that is null
        raise builder_missing(opened.label, log) from error
    kinds = trt.NetworkDefinitionCreationFlag
    wanted = [getattr(kinds, "STRONGLY_TYPED", None)]
    if plugins:
        from doge_export.triton.register import register_plugins, suits

        register_plugins(suits(Cuda.open().capability))
        wanted.append(kinds.PREFER_AOT_PYTHON_PLUGINS)
    definition = builder.create_network(sum(1 << int(flag) for flag in wanted if flag is not None))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(ir.to_proto(model).SerializeToString(), str(path)):
        raise parser_refusal(opened.label, parser, log)
    log.errors.clear()
    stored = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in stored if tensor is not None)
    names = (*(node.name or "" for node in model.graph), *model.graph.initializers)
    return Network(definition, builder, parser, log, names, weights, plugins)


def summary(network: Network) -> dict[str, Any]:
    """How many layers of each type give which type of number, and the bytes of the constants in them."""
    definition = network.definition
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    counts = Counter(
        (layer.type.name, layer.get_output(0).dtype.name) for layer in layers if layer.num_outputs
    )
    return {
        "count": len(layers),
        "types": [
            {"type": kind, "dtype": dtype, "count": count} for (kind, dtype), count in sorted(counts.items())
        ],
        "cache_updates": sum(count for (kind, _), count in counts.items() if kind == "KV_CACHE_UPDATE"),
        "weights_bytes": network.weights,
    }
