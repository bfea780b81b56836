"""From a canonical graph to a file: weights, their types, bodies, and what the target has kernels for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from doge_export.core.config import DogeConfig
from doge_export.core.generations import CURRENT, GENERATIONS
from doge_export.core.progress import Progress, silent
from doge_export.graph.canonical import DTYPES, CanonicalGraph
from doge_export.graph.operators import BodyOptions
from doge_export.graph.passes import (
    attach_bodies,
    decode_tokens,
    in_place_cache,
    inline_bodies,
    lower_embedding,
    lower_head,
    lower_layers,
    lower_rope,
    pretranspose,
    quantize_activations,
    quantize_weights,
    top_tokens,
    weights_first,
    write,
)
from doge_export.graph.passes.quantize_activations import StaticRanges
from doge_export.graph.passes.quantize_weights import Round
from doge_export.graph.passes.simplify import number
from doge_export.graph.targets import OPSETS, Target
from doge_export.graph.targets.lowered import (
    DECODER_LAYER,
    LM_HEAD,
    ROTARY_ANGLES,
    TOKEN_EMBEDDING,
)
from doge_export.weights import PRECISIONS, Precision

__all__ = ["GraphFile", "Lowering", "lower", "save_graph"]

#: TopTokens gives this many candidates, or the whole vocabulary where that is smaller.
_COUNT = 64


@dataclass(frozen=True)
class GraphFile:
    """A graph ready to be written, and what its function bodies were specialised for. `count`: how many
    tokens `decode.onnx` gives; None where there shall be no such file. `cache` and `decode_cache`: the kinds
    of the two files. `activation`: the model's, where there shall be a `plugins.onnx`."""

    model: ir.Model
    options: BodyOptions
    cache: str = "growing"
    count: int | None = None
    decode_cache: str = "static"
    activation: str | None = None


@dataclass(frozen=True)
class Lowering:
    """What a graph is lowered to.

    Attributes:
        target: one with kernels gets the graph lowered to them, with the weights as the checkpoint has them
            or rounded; another one gets them as MatMul reads them. There are kernels for the current
            generation alone.
        precision: what the weights are stored in.
        round_with: what rounds them; None rounds to nearest.
        static: the ranges of the products' inputs, where those are rounded too.
        plugins: whether there shall be a second graph, of nodes that are plugins of TensorRT.
    """

    target: Target
    precision: Precision = PRECISIONS["fp32"]
    round_with: Round | None = None
    static: StaticRanges | None = None
    plugins: bool = False


def lower(
    canonical: CanonicalGraph,
    config: DogeConfig,
    weights: Mapping[str, ir.TensorProtocol],
    lowering: Lowering,
) -> GraphFile:
    """The finished graph of the model `config`, with `weights` by their names in the checkpoint, in the
    canonical graph's dtype.

    Raises:
        KeyError: a weight is missing.
    """
    target, stored = lowering.target, lowering.precision
    kernels = target.kernels if config.generation == CURRENT else frozenset()
    options = _body_options(canonical, config, target)
    model = canonical.with_weights(weights)
    plain = DECODER_LAYER not in kernels and target.pretransposed
    if plain and (stored.static is not None or not stored.rounds):
        pretranspose(model)
        weights_first(model.graph)
        number(model)
    quantize_weights(model, stored, config.tie_word_embeddings, lowering.round_with, target.bare_integers)
    if lowering.static is not None:
        quantize_activations(model, lowering.static, target.bare_integers)
    if stored.rounds and DECODER_LAYER not in kernels:
        number(model)
    attach_bodies(model, options)
    if TOKEN_EMBEDDING in kernels:
        lower_embedding(model)
    if ROTARY_ANGLES in kernels:
        lower_rope(model, canonical.rotary)
    if DECODER_LAYER in kernels:
        lower_layers(model, config.hidden_act)
    if LM_HEAD in kernels:
        lower_head(model)
    return GraphFile(
        model,
        options,
        canonical.kv_cache,
        min(_COUNT, config.vocab_size) if target.decodes and config.generation == CURRENT else None,
        _decode_cache(canonical, config),
        config.hidden_act if lowering.plugins else None,
    )


def _body_options(canonical: CanonicalGraph, config: DogeConfig, target: Target) -> BodyOptions:
    static = canonical.kv_cache == "static"
    return BodyOptions(
        dtype=DTYPES[canonical.dtype],
        opset=canonical.opset,
        static=static,
        sliding_window=config.sliding_window is not None,
        per_token=canonical.routing == "per-token" or GENERATIONS[config.generation].queries is not None,
        norm_topk_prob=config.norm_topk_prob,
        branches=target.branches,
        float64=target.float64,
        window_open=static and (canonical.max_length or math.inf) <= config.keep_window_size,
    )


def _decode_cache(canonical: CanonicalGraph, config: DogeConfig) -> str:
    """The kind of cache of decode.onnx: bounded in the place of a growing one, where that is exact."""
    if canonical.kv_cache != "growing":
        return canonical.kv_cache
    return "bounded" if config.why_not_bounded(canonical.routing) is None else "static"


def save_graph(graph: GraphFile, folder: Path, progress: Progress = silent) -> ir.Model | None:
    """Write `model.onnx` and `model.onnx.data`, and `decode.onnx` and `plugins.onnx`, which read the same
    weights.

    `decode.onnx` gives the best tokens, and its cache is written in place: a growing one becomes a bounded
    one, or a static one of as many slots as the caller likes. `progress` gets bytes written.

    Returns: the graph of `decode.onnx`, or None where there is none.
    """
    stage = "writing the weights"
    progress(0, stage)
    write(
        graph.model,
        folder / "model.onnx",
        external_data="model.onnx.data",
        size_threshold_bytes=1024,
        max_workers=1,
        callback=lambda tensor, info: progress(tensor.nbytes, stage),
    )
    if graph.activation is not None:
        _save_plugins(folder, graph.options, graph.activation)
    if graph.count is None:
        return None
    decode = ir.load(folder / "model.onnx")  # knows where each weight lies
    if graph.cache == "growing":
        kind = graph.decode_cache
        in_place_cache(decode, replace(graph.options, static=kind == "static", opset=OPSETS[kind]), kind)
    top_tokens(decode, graph.count)
    decode_tokens(decode)
    write(decode, folder / "decode.onnx")
    return decode


def _save_plugins(folder: Path, options: BodyOptions, activation: str) -> None:
    """`plugins.onnx`: the same graph, where each operator of ours is a chain of plugins, node by node."""
    from doge_export.graph.passes.mix_experts import mix_experts  # they need Triton, which few have
    from doge_export.triton.bodies import attach_plugins

    model = ir.load(folder / "model.onnx")
    mix_experts(model, activation)
    attach_plugins(model, options)
    inline_bodies(model)
    write(model, folder / "plugins.onnx")
