"""Turn a growing cache into buffers that each step writes in place, for decoding without copies."""

from collections.abc import MutableSequence
from dataclasses import dataclass

import onnx_ir as ir

from doge_export.graph.operators import (
    DOMAIN,
    BodyOptions,
    Operator,
    bounded_mask_attention,
    dynamic_mask_attention,
)
from doge_export.graph.targets import OPSETS
from doge_export.graph.targets.lowered import DECODER_LAYER, LAYER_ROLES, ROTARY_ANGLES, ROTARY_ANGLES_ROLES

__all__ = ["in_place_cache"]

_SLOTS = "slots"
_WHOLE = "rope_length"
_INT64 = ir.TensorType(ir.DataType.INT64)


@dataclass(frozen=True)
class _Kind:
    """`parts`: what a layer keeps beside keys and values. `shared`: the input that all layers read besides.
    `covered`: what attention_mask speaks of."""

    operator: Operator
    parts: tuple[str, ...]
    shared: str
    covered: str


_KINDS = {
    "static": _Kind(dynamic_mask_attention.OPERATOR, ("dt",), "cache_position", _SLOTS),
    "bounded": _Kind(bounded_mask_attention.OPERATOR, ("dt", "position"), "position_ids", "sequence"),
}


def in_place_cache(model: ir.Model, options: BodyOptions, kind: str) -> None:
    """Give a lowered graph with a growing cache the interface of a static or bounded one, of any number of
    slots.

    `options` are those of a body of that kind. What was `past` or `past+sequence` long has `slots` then. New
    inputs and outputs are what a growing cache computes anew at each step: `past_key_values.N.dt` [batch,
    kv_heads, slots], the keys' weights, and of a bounded one `.position`, int64. New inputs: for a static
    cache `cache_position` int64 [batch], the slot of the first new token of each row; for a bounded one
    `rope_length`, where the rope depends on it. The layers' bodies change with their nodes: they stay what
    the kernels compute.
    """
    graph, new = model.graph, _KINDS[kind]
    layers = [node for node in graph if node.domain == DOMAIN and node.op_type == DECODER_LAYER]
    model.functions.pop((DOMAIN, dynamic_mask_attention.OPERATOR.name, ""))
    for value in (*graph.inputs, *graph.outputs):
        if value.name == "attention_mask":
            value.shape = ir.Shape([_batch(graph), new.covered])
        elif "key" in (value.name or "") or "value" in (value.name or ""):
            value.shape = _with_slots(value)
    shared = next((value for value in graph.inputs if value.name == new.shared), None)
    if shared is None:
        shared = ir.Value(name=new.shared, type=_INT64, shape=ir.Shape([_batch(graph)]))
        graph.inputs.append(shared)
    for domain, name, overload in list(model.functions):
        if (domain, name) == (DOMAIN, DECODER_LAYER):
            _widen_body(model.functions[domain, name, overload], new)
    for index, node in enumerate(layers):
        _widen_node(graph, node, index, new, shared)
    if kind == "bounded":
        _tell_length(model)
    body = new.operator.body(options)
    del body.outputs[3 + len(new.parts) :]
    model.functions[body.identifier()] = body
    graph.opset_imports[""] = OPSETS[kind]
    for function in model.functions.values():
        function.opset_imports[""] = OPSETS[kind]


def _batch(graph: ir.Graph) -> str:
    shape = graph.inputs[0].shape
    assert shape is not None
    return str(shape[0])


def _with_slots(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return ir.Shape([_SLOTS if isinstance(dim, str) and dim.startswith("past") else dim for dim in dims])


def _roles(names: list[str], new: _Kind) -> list[str]:
    wanted = {*names, new.shared, *(f"past_{part}" for part in new.parts)}
    return [role for role in LAYER_ROLES if role in wanted]


def _widen_body(body: ir.Function, new: _Kind) -> None:
    """Change a layer's body to the attention of the other cache."""
    formal = {value.name or "": value for value in body.inputs}
    roles = _roles(list(formal), new)
    for name in roles:
        if name not in formal:
            formal[name] = ir.Value(name=name)
    body.inputs[:] = [formal[role] for role in roles]
    old_operator = dynamic_mask_attention.OPERATOR
    (old,) = (node for node in body if node.op_type == old_operator.name)
    arguments = dict(zip(old_operator.input_names, old.inputs, strict=False)) | {
        name: formal[name] for name in (new.shared, *(f"past_{part}" for part in new.parts))
    }
    node = ir.Node(
        DOMAIN,
        new.operator.name,
        [arguments[name] for name in new.operator.input_names],
        [old.attributes[name] for name in new.operator.attributes],
        num_outputs=3 + len(new.parts),
    )
    names = [old.outputs[0].name or "", *new.operator.output_names[1:]]
    outputs = list(body.outputs)
    ir.convenience.replace_nodes_and_values(body, old, [old], [node], old.outputs[:3], node.outputs[:3])
    swapped = dict(zip(old.outputs, node.outputs, strict=False))
    body.outputs[:] = [*(swapped.get(value, value) for value in outputs), *node.outputs[3:]]
    for value, name in zip(node.outputs, names, strict=False):
        value.name = name


def _widen_node(graph: ir.Graph, node: ir.Node, index: int, new: _Kind, shared: ir.Value) -> None:
    names = node.attributes["inputs"].as_string().split(",")
    arguments = dict(zip(names, node.inputs, strict=True))
    key = arguments["past_key"]
    assert key is not None and key.shape is not None
    shape = ir.Shape(list(key.shape)[:3])
    kinds = {"dt": key.type, "position": _INT64}
    arguments[new.shared] = shared
    for part in new.parts:
        value = ir.Value(name=f"past_key_values.{index}.{part}", type=kinds[part], shape=shape)
        arguments[f"past_{part}"] = value
    roles = _roles(names, new)
    values: MutableSequence[ir.Value]
    added: ir.Value | None
    node.resize_inputs(len(roles))
    for position, role in enumerate(roles):
        node.replace_input_with(position, arguments[role])
    node.attributes["inputs"] = ir.AttrString("inputs", ",".join(roles))
    node.resize_outputs(3 + len(new.parts))
    for offset, part in enumerate(new.parts):
        output = node.outputs[3 + offset]
        output.name, output.type, output.shape = f"present.{index}.{part}", kinds[part], shape
        for values, other, added in (
            (graph.inputs, "past_key_values", arguments[f"past_{part}"]),
            (graph.outputs, "present", output),
        ):
            at = [each.name for each in values].index(f"{other}.{index}.value")
            assert added is not None
            values.insert(at + 1 + offset, added)


def _tell_length(model: ir.Model) -> None:
    """Give RotaryAngles an input for the length of the whole text, where its rope depends on that."""
    body = model.functions[(DOMAIN, ROTARY_ANGLES, "")]
    longest = [node for node in body if node.op_type == "ReduceMax"]
    if not longest:
        return
    ((add, _),) = longest[0].outputs[0].uses()
    assert add.op_type == "Add" and len(longest) == 1, "the rope asks for its length in another way"
    formal = ir.Value(name=_WHOLE)
    length = ir.Node("", "Max", [add.outputs[0], formal])
    length.outputs[0].name = "whole_length"
    ir.convenience.replace_all_uses_with(add.outputs[0], length.outputs[0])
    length.replace_input_with(0, add.outputs[0])
    body.insert_after(add, length)
    inputs = {value.name: value for value in body.inputs} | {_WHOLE: formal}
    body.inputs[:] = [inputs[role] for role in ROTARY_ANGLES_ROLES if role in inputs]

    whole = ir.Value(name=_WHOLE, type=_INT64, shape=ir.Shape([]))
    model.graph.inputs.append(whole)
    (node,) = (node for node in model.graph if node.domain == DOMAIN and node.op_type == ROTARY_ANGLES)
    names = node.attributes["inputs"].as_string().split(",")
    arguments = dict(zip(names, node.inputs, strict=True)) | {_WHOLE: whole}
    roles = [role for role in ROTARY_ANGLES_ROLES if role in arguments]
    node.resize_inputs(len(roles))
    for position, role in enumerate(roles):
        node.replace_input_with(position, arguments[role])
    node.attributes["inputs"] = ir.AttrString("inputs", ",".join(roles))
