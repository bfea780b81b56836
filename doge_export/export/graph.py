"""torch module -> ONNX graph, through torch.export and torch's ONNX exporter."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import values

from doge_export.model import CACHE_KINDS, DogeForExport
from doge_export.ops import DOMAIN, OPERATORS, VERSION, Operator

__all__ = ["export_graph"]


def export_graph(model: DogeForExport, opset: int, max_length: int | None = None) -> ir.Model:
    """The model as an ONNX graph with nodes of the domain `doge` and no function bodies yet.

    Every dimension that a caller may choose (batch, sequence, past) is symbolic; a static cache has
    `max_length` slots. Weights stay references to the model's tensors.
    """
    _register_schemas()
    static = model.kv_cache == "static"
    batch, sequence, past = 2, 3, 5  # 0 and 1 would be taken for constants
    total = past if static else past + sequence
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, total, dtype=torch.int64)
    position = torch.zeros(batch, dtype=torch.int64) if static else None
    cache = model.empty_cache(batch, past)
    dim = torch.export.Dim.DYNAMIC
    token_dims = {0: dim, 1: dim}
    shapes = {
        "input_ids": token_dims,
        "attention_mask": {0: dim, 1: dim},
        "position_ids": token_dims,
        "past": [{0: dim, 2: dim} for _ in cache],
        "cache_position": {0: dim} if static else None,
    }
    # The exporter looks for torchvision and logs that it is not there.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, (ids, mask, ids.clone(), cache, position), dynamic_shapes=shapes, strict=False
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


def _register_schemas() -> None:
    """One schema for exporter, checker and shape inference; registering twice is an error in onnx."""
    for operator in OPERATORS:
        if not onnx.defs.has(operator.name, VERSION, DOMAIN):
            onnx.defs.register_schema(operator.onnx_schema())


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
    parts = CACHE_KINDS[model.kv_cache]
    static = model.kv_cache == "static"
    graph = exported.graph
    slots: int | str = (max_length or "slots") if static else "past"
    kv_shape: dict[str, list[int | str]] = {
        "key": ["batch", config.num_key_value_heads, slots, config.head_dim],
        "dt": ["batch", config.num_key_value_heads, slots],
    }
    kv_shape["value"] = kv_shape["key"]
    shapes: dict[str, list[int | str]] = {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", slots if static else "past+sequence"],
        "position_ids": ["batch", "sequence"],
    }
    outputs: dict[str, list[int | str]] = {"logits": ["batch", "sequence", config.vocab_size]}
    for layer in range(config.num_hidden_layers):
        for part in parts:
            shapes[f"past_key_values.{layer}.{part}"] = kv_shape[part]
            grown = [d if d != "past" else "past+sequence" for d in kv_shape[part]]
            outputs[f"present.{layer}.{part}"] = grown
    if static:
        shapes["cache_position"] = ["batch"]
    for value, (name, shape) in zip(graph.inputs, shapes.items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
    for value, (name, shape) in zip(graph.outputs, outputs.items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
