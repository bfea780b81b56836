"""torch module -> canonical graph, through torch.export and torch's ONNX exporter."""

import logging
import warnings
from collections.abc import Callable, Collection
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import values

from doge_export.core.config import DogeConfig
from doge_export.core.tensor_shapes import optional_shapes
from doge_export.graph.canonical import CanonicalGraph, register_schemas
from doge_export.graph.operators import DOMAIN, OPERATORS, VERSION, Operator
from doge_export.graph.targets import OPSETS
from doge_export.model.causal_lm import CACHE_KINDS, DogeForExport
from doge_export.model.load import empty_model

__all__ = ["export_graph", "trace"]

#: Graphs of this process, the oldest first, by all that they depend on; each is some 100 KB.
_traced: dict[str, CanonicalGraph] = {}
_KEPT = 16


def trace(
    config: DogeConfig,
    names: Collection[str],
    dtype: str = "float32",
    routing: str = "reference",
    kv_cache: str = "growing",
    max_length: int | None = None,
) -> CanonicalGraph:
    """The canonical graph of a model with these options, which needs none of its numbers: what was traced
    before in this process is not traced again.

    `names`: the tensors of the checkpoint, of which some are optional; `max_length`: the slots of a static
    cache, which another one has not.
    """
    optional = optional_shapes(config, names, names)
    key = repr((config, optional, dtype, routing, kv_cache, max_length))
    if key not in _traced:
        model = empty_model(config, names, dtype, routing, kv_cache)
        graph = CanonicalGraph.of_traced(
            export_graph(model, OPSETS[kv_cache], max_length),
            dict(model.named_parameters()),
            dtype=dtype,
            routing=routing,
            kv_cache=kv_cache,
            max_length=max_length,
            rotary=model.rotary_embedding.constants,
        )
        while len(_traced) >= _KEPT:
            del _traced[next(iter(_traced))]
        _traced[key] = graph
    return _traced[key]


def export_graph(model: DogeForExport, opset: int, max_length: int | None = None) -> ir.Model:
    """The model as an ONNX graph with nodes of the domain `doge` and no function bodies yet.

    Every dimension that a caller may choose (batch, sequence, past) is symbolic; a static cache has
    `max_length` slots.
    """
    register_schemas()
    static, bounded = model.kv_cache == "static", model.kv_cache == "bounded"
    batch, sequence, past = 2, 3, 5  # 0 and 1 would be taken for constants
    total = {"static": past, "bounded": sequence}.get(model.kv_cache, past + sequence)
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, total, dtype=torch.int64)
    position = torch.zeros(batch, dtype=torch.int64) if static else None
    cache = model.empty_cache(batch, past)
    whole = torch.tensor(0) if bounded and model.rotary_embedding.depends_on_length else None
    dim = torch.export.Dim.DYNAMIC
    token_dims = {0: dim, 1: dim}
    shapes = {
        "input_ids": token_dims,
        "attention_mask": {0: dim, 1: dim},
        "position_ids": token_dims,
        "past": [{0: dim, 2: dim} for _ in cache],
        "cache_position": {0: dim} if static else None,
        "rope_length": None if whole is None else {},
    }
    # The exporter looks for torchvision and logs that it is not there.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, (ids, mask, ids.clone(), cache, position, whole), dynamic_shapes=shapes, strict=False
        )
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            custom_translation_table=_translations(),
        )
    assert onnx_program is not None
    exported: ir.Model = onnx_program.model
    _name_interface(exported, model, max_length)
    return exported


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    return {_overload(operator): _translation(operator) for operator in OPERATORS}


def _overload(operator: Operator) -> Any:
    namespace, name = operator.torch_name.split("::")
    return getattr(getattr(torch.ops, namespace), name).default


def _translation(operator: Operator) -> Callable[..., Any]:
    """The torch operator's positional arguments are the ONNX inputs, then the attributes, in order."""
    opset = values.Opset(DOMAIN, VERSION)
    count = len(operator.inputs)

    def translate(*arguments: Any) -> Any:
        attributes = dict(zip(operator.attributes, arguments[count:], strict=True))
        return getattr(opset, operator.name)(*arguments[:count], **attributes)

    return translate


def _name_interface(exported: ir.Model, model: DogeForExport, max_length: int | None) -> None:
    """The names that loaders expect, and symbolic dimensions under their own names."""
    config = model.config
    kind = model.kv_cache
    graph = exported.graph
    slots: int | str = (max_length or "slots") if kind == "static" else "past"
    grown = {"growing": "past+sequence", "bounded": "kept"}.get(kind, slots)
    covered = {"static": slots, "bounded": "sequence"}.get(kind, "past+sequence")
    shapes: dict[str, list[int | str]] = {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", covered],
        "position_ids": ["batch", "sequence"],
    }
    outputs: dict[str, list[int | str]] = {"logits": ["batch", "sequence", config.vocab_size]}
    for layer in range(config.num_hidden_layers):
        for part in CACHE_KINDS[kind]:
            head_dim = [config.head_dim] if part in ("key", "value") else []
            heads = config.dt_heads if part == "dt" else config.num_key_value_heads
            shapes[f"past_key_values.{layer}.{part}"] = ["batch", heads, slots, *head_dim]
            outputs[f"present.{layer}.{part}"] = ["batch", heads, grown, *head_dim]
    if kind == "static":
        shapes["cache_position"] = ["batch"]
    if kind == "bounded" and model.rotary_embedding.depends_on_length:
        shapes["rope_length"] = []
    for value, (name, shape) in zip(graph.inputs, shapes.items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
    for value, (name, shape) in zip(graph.outputs, outputs.items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
