"""The files of a bundle that depend on its weights: graphs, recipe, manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.core.bundle import CANONICAL, write_manifest
from doge_export.core.bundle.options import ONNXRUNTIME_SINCE
from doge_export.core.config import DogeConfig
from doge_export.core.generations.decision import Decision
from doge_export.core.json_file import read_object
from doge_export.core.progress import Progress, silent
from doge_export.export.description import describe_graphs
from doge_export.export.genai import special_token_ids
from doge_export.export.options import RECIPE, ExportOptions
from doge_export.runtime.generation_config import GENERATION_CONFIG

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.graph.canonical import CanonicalGraph
    from doge_export.graph.passes.quantize_activations import StaticRanges
    from doge_export.graph.passes.quantize_weights import Round

__all__ = ["TracedModel", "write_bundle"]


@dataclass(frozen=True)
class TracedModel:
    """A model ready to be lowered: its canonical graph, the weights by the graph's names, its configuration,
    and what decided its generation. `versions`: of the packages that traced it; None: those installed."""

    canonical: "CanonicalGraph"
    weights: "Mapping[str, ir.TensorProtocol]"
    config: DogeConfig
    decision: Decision
    versions: Mapping[str, str] | None = None


def write_bundle(
    folder: Path,
    model: TracedModel,
    options: ExportOptions,
    *,
    round_with: "Round | None" = None,
    static: "StaticRanges | None" = None,
    progress: Progress = silent,
) -> None:
    """Lower `model` by `options` into `folder`, where the files beside the graph lie already.

    A bundle in full precision keeps the canonical graph, to be lowered again with other types. `progress`
    gets bytes written.
    """
    from doge_export.graph.lower import Lowering, lower, save_graph

    lowering = Lowering(options.target_data, options.stored, round_with, static, options.plugins)
    graph = lower(model.canonical, model.config, model.weights, lowering)
    decode = save_graph(graph, folder, progress)
    if not options.stored.rounds:
        model.canonical.save(folder / CANONICAL)
    options.write(folder / RECIPE)
    progress(0, "hashing")
    resolved = options.resolved(model.config)
    if static is not None:
        resolved |= {"calibration": static.calibration, "smooth": static.smooth}
    described = describe_graphs(model.config, graph, decode, resolved, model.versions)
    more = {
        "special_tokens": special_token_ids(model.config, read_object(folder / GENERATION_CONFIG)),
        "min_onnxruntime": ONNXRUNTIME_SINCE[options.opset],
    }
    write_manifest(folder, **described, generation=model.decision, more=more)
    # The weights go before whoever comes next brings its own. onnxscript's rewrite rules remember the last
    # node they looked at, and with it the graph.
    for value in graph.model.graph.initializers.values():
        value.const_value = None
