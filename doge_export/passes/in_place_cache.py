"""A growing cache becomes buffers that each step writes in place, for decoding with nothing copied."""

import onnx_ir as ir

from doge_export.ops import DOMAIN, BodyOptions
from doge_export.ops.dynamic_mask_attention import OPERATOR
from doge_export.ops.lowered import DECODER_LAYER, LAYER_ROLES
from doge_export.targets import OPSETS

__all__ = ["in_place_cache"]

_SLOTS = "slots"


def in_place_cache(model: ir.Model, options: BodyOptions) -> None:
    """Give a lowered graph with a growing cache the interface of a static one, of any number of slots.

    `options` are those of a static body. New inputs: `cache_position` int64 [batch], the slot of the first
    new token of each row, and `past_key_values.N.dt` [batch, kv_heads, slots], the keys' weights, which a
    growing cache computes anew at each step. What was `past` or `past+sequence` long has `slots` then. The
    layers' bodies change with their nodes: they stay what the kernels compute.
    """
    graph = model.graph
    layers = [node for node in graph if node.domain == DOMAIN and node.op_type == DECODER_LAYER]
    model.functions.pop((DOMAIN, OPERATOR.name, ""))
    for value in (*graph.inputs, *graph.outputs):
        if value.name == "attention_mask" or "key" in (value.name or "") or "value" in (value.name or ""):
            value.shape = _with_slots(value)
    position = ir.Value(
        name="cache_position", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([_batch(graph)])
    )
    _widen_body(model.functions[(DOMAIN, DECODER_LAYER, "")])
    for index, node in enumerate(layers):
        _widen_node(graph, node, index, position)
    graph.inputs.append(position)
    body = OPERATOR.body(options)
    del body.outputs[4:]
    model.functions[body.identifier()] = body
    for owner in (graph, *model.functions.values()):
        owner.opset_imports[""] = OPSETS["static"]


def _batch(graph: ir.Graph) -> str:
    shape = graph.inputs[0].shape
    assert shape is not None
    return str(shape[0])


def _with_slots(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return ir.Shape([_SLOTS if isinstance(dim, str) and dim.startswith("past") else dim for dim in dims])


def _roles(names: list[str]) -> list[str]:
    return [role for role in LAYER_ROLES if role in {*names, "past_dt", "cache_position"}]


def _widen_body(body: ir.Function) -> None:
    """The same layer, whose attention is given past_dt and cache_position and gives present_dt."""
    formal = {value.name or "": value for value in body.inputs}
    roles = _roles(list(formal))
    formal |= {name: ir.Value(name=name) for name in ("past_dt", "cache_position")}
    body.inputs[:] = [formal[role] for role in roles]
    (attention,) = (node for node in body if node.op_type == OPERATOR.name)
    attention.resize_inputs(len(OPERATOR.inputs))
    attention.replace_input_with(OPERATOR.inputs.index("past_dt"), formal["past_dt"])
    attention.replace_input_with(OPERATOR.inputs.index("cache_position"), formal["cache_position"])
    attention.resize_outputs(4)
    attention.outputs[3].name = "present_dt"
    body.outputs.append(attention.outputs[3])


def _widen_node(graph: ir.Graph, node: ir.Node, index: int, position: ir.Value) -> None:
    names = node.attributes["inputs"].as_string().split(",")
    given = dict(zip(names, node.inputs, strict=True))
    key = given["past_key"]
    assert key is not None and key.shape is not None
    shape = ir.Shape(list(key.shape)[:3])
    weights = ir.Value(name=f"past_key_values.{index}.dt", type=key.type, shape=shape)
    given |= {"past_dt": weights, "cache_position": position}
    roles = _roles(names)
    node.resize_inputs(len(roles))
    for place, role in enumerate(roles):
        node.replace_input_with(place, given[role])
    node.attributes["inputs"] = ir.AttrString("inputs", ",".join(roles))
    node.resize_outputs(4)
    output = node.outputs[3]
    output.name, output.type, output.shape = f"present.{index}.dt", key.type, shape
    for values, other, new in (
        (graph.inputs, "past_key_values", weights),
        (graph.outputs, "present", output),
    ):
        at = [value.name for value in values].index(f"{other}.{index}.value")
        values.insert(at + 1, new)
