"""The steps from a loaded model to a file: graph, passes, bodies, and the weights beside it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from doge_export.export.graph import export_graph
from doge_export.generations import CURRENT, GENERATIONS
from doge_export.model import DogeForExport
from doge_export.ops import BodyOptions
from doge_export.passes import (
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
    simplify,
    top_tokens,
    write,
)
from doge_export.passes.quantize_activations import StaticRanges
from doge_export.passes.quantize_weights import Round
from doge_export.passes.simplify import number
from doge_export.quantize import PRECISIONS, Precision
from doge_export.targets import OPSETS, Target
from doge_export.targets.lowered import (
    DECODE_TOKENS,
    DECODER_LAYER,
    LM_HEAD,
    ROTARY_ANGLES,
    TOKEN_EMBEDDING,
    TOP_TOKENS,
)

__all__ = ["GraphFile", "build_graph", "save_graph"]

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


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


def build_graph(
    model: DogeForExport,
    target: Target,
    dtype: str,
    routing: str,
    max_length: int | None = None,
    precision: Precision | str = "fp32",
    round_with: Round | None = None,
    static: StaticRanges | None = None,
    plugins: bool = False,
) -> GraphFile:
    """The finished ONNX model of `model` for `target`; `max_length` are the slots of a static cache.

    A target with kernels gets the graph lowered to them, with the weights as the checkpoint has them or
    in `precision`, rounded to nearest or by `round_with`; another one gets them as MatMul reads them, with
    `static` in int8 with their inputs. There are kernels for the current generation alone. With `plugins`
    there shall be a second graph, of nodes that are plugins of TensorRT.
    """
    config = model.config
    kernels = target.kernels if config.generation == CURRENT else frozenset()
    options = BodyOptions(
        dtype=_DTYPES[dtype],
        opset=OPSETS[model.kv_cache],
        static=model.kv_cache == "static",
        sliding_window=config.sliding_window is not None,
        per_token=routing == "per-token" or GENERATIONS[config.generation].queries,
        norm_topk_prob=config.norm_topk_prob,
        branches=target.branches,
        float64=target.float64,
        window_open=model.kv_cache == "static" and (max_length or math.inf) <= config.keep_window_size,
    )
    exported = export_graph(model, options.opset, max_length)
    stored = PRECISIONS[precision] if isinstance(precision, str) else precision
    plain = DECODER_LAYER not in kernels and target.pretransposed
    if plain and (stored.static or not stored.rounds):
        pretranspose(exported)
    simplify(exported)
    quantize_weights(exported, stored, config.tie_word_embeddings, round_with, target.bare_integers)
    if static is not None:
        quantize_activations(exported, static, target.bare_integers)
    if stored.rounds and DECODER_LAYER not in kernels:
        number(exported)
    attach_bodies(exported, options)
    if TOKEN_EMBEDDING in kernels:
        lower_embedding(exported)
    if ROTARY_ANGLES in kernels:
        lower_rope(exported, model.rotary_embedding.constants)
    if DECODER_LAYER in kernels:
        lower_layers(exported, config.hidden_act)
    if LM_HEAD in kernels:
        lower_head(exported)
    decoding = {DECODE_TOKENS, DECODER_LAYER, LM_HEAD, ROTARY_ANGLES, TOP_TOKENS} <= kernels
    count = min(_COUNT, config.vocab_size) if decoding else None
    decode_cache = model.kv_cache
    if model.kv_cache == "growing":
        decode_cache = "bounded" if config.why_not_bounded(routing) is None else "static"
    activation = config.hidden_act if plugins else None
    return GraphFile(exported, options, model.kv_cache, count, decode_cache, activation)


def save_graph(
    graph: GraphFile, folder: Path, progress: Callable[[int], None] = lambda written: None
) -> ir.Model | None:
    """Write `model.onnx` and `model.onnx.data`, and `decode.onnx` and `plugins.onnx`, which read the same
    weights.

    `decode.onnx` gives the best tokens, and its cache is written in place: a growing one becomes a bounded
    one, or a static one of as many slots as the caller likes. `progress` gets the bytes of each tensor
    written.

    Returns: the graph of `decode.onnx`, or None where there is none.
    """
    write(
        graph.model,
        folder / "model.onnx",
        external_data="model.onnx.data",
        size_threshold_bytes=1024,
        max_workers=1,
        callback=lambda tensor, info: progress(tensor.nbytes),
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
    from doge_export.passes.mix_experts import mix_experts  # they need Triton, which few have
    from doge_export.triton.bodies import attach_plugins

    model = ir.load(folder / "model.onnx")
    mix_experts(model, activation)
    attach_plugins(model, options)
    inline_bodies(model)
    write(model, folder / "plugins.onnx")
