"""ONNX functions: an operator as a chain of TensorRT plugins, in the place of its body of standard operators.

TensorRT's parser inlines a function whose name no plugin has, and takes a node for a plugin by its name and
its attribute `plugin_namespace`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, VERSION, BodyOptions
from doge_export.graph.operators.bounded_mask_attention import OPERATOR as BOUNDED
from doge_export.graph.operators.dynamic_mask_attention import OPERATOR as DYNAMIC
from doge_export.graph.operators.function import BodyBuilder
from doge_export.triton.table import NAMESPACE, PLUGINS

__all__ = ["PLUGIN_BODIES", "attach_plugins", "plugin_node"]

_KINDS = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}


#: What makes TensorRT's parser take a node for a plugin of ours, compiled ahead of time.
_PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}


def plugin_node(name: str, inputs: list[ir.Value], attributes: dict[str, Any]) -> ir.Node:
    """Return the node that TensorRT's parser takes for the plugin `doge::<name>`."""
    attributes = {**attributes, **_PLUGIN_ATTRIBUTES}
    attrs = [
        value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(key, value)
        for key, value in attributes.items()
    ]
    return ir.Node(DOMAIN, name, inputs, attrs, num_outputs=len(PLUGINS[name].outputs))


class _Chain:
    """Values by name, to which plugins add theirs: a plugin's inputs are found by the names it gives them."""

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.b = BodyBuilder(inputs)
        self.values: dict[str, ir.Value] = dict(self.b.inputs)

    def add(self, name: str, **constants: int) -> None:
        """Add the node of one plugin; attributes that `constants` lacks are the operator's own."""
        plugin, b = PLUGINS[name], self.b
        attributes = {
            key: constants[key] if key in constants else b.attribute(key, _KINDS[kind], key)
            for key, kind in plugin.attributes.items()
        }
        node = plugin_node(name, [self.values[key] for key in plugin.inputs], attributes)
        b.nodes.append(node)
        for key, output in zip(plugin.outputs, node.outputs, strict=True):
            output.name = key
            self.values[key] = output

    def attend(self, **constants: int) -> None:
        """Add the plugins that lead from keys in the cache to the output."""
        for name in ("MaskThreshold", "SplitAttention", "CombineSplits"):
            self.add(name, **constants)

    def function(self, name: str, outputs: tuple[str, ...], opset: int) -> ir.Function:
        function = self.b.function(name, {key: self.values[key] for key in outputs}, opset)
        function.graph.opset_imports[DOMAIN] = VERSION
        return function

    def every_row(self, value: ir.Value) -> ir.Value:
        """Repeat an int64 [1] for each row: [batch]."""
        result: ir.Value = self.b.Expand(value, self.b.Shape(self.values["query"], start=0, end=1))
        return result


def _dynamic(options: BodyOptions) -> ir.Function:
    """The function of a growing or static cache, made of plugins, with all outputs but `keep`. The static
    cache is written in place: past_* and present_* are one buffer."""
    chain = _Chain(DYNAMIC.input_names)
    values, b = chain.values, chain.b
    values["key_positions"] = values["attention_mask"]
    if options.static:
        values["first"] = values["cache_position"]
        chain.add("StoreKeys")
    else:
        past = b.Shape(values["past_key"], start=2, end=3)
        values["first"] = chain.every_row(past)
        chain.add("AppendKeys")
    values["dt"] = values["present_dt"]
    chain.attend(bounded=0)
    if options.sliding_window and not options.static:
        reach = b.Sub(b.Add(past, b.const([1])), b.int_attribute("sliding_window"))
        start, end = b.Max(reach, b.const([0])), b.const([np.iinfo(np.int64).max])
        values["dt"].name = "all_dt"
        values["present_dt"] = b.Slice(values["dt"], start, end, b.const([2]))
    return chain.function(
        DYNAMIC.name, ("output", "present_key", "present_value", "present_dt"), options.opset
    )


def _bounded(options: BodyOptions) -> ir.Function:
    """The function of a bounded cache, made of plugins, with all outputs but `keep`."""
    chain = _Chain(BOUNDED.input_names)
    values = chain.values
    values["first"] = chain.every_row(chain.b.Shape(values["past_key"], start=2, end=3))
    chain.add("StageKeys")
    values["present_key"], values["present_value"] = values["all_key"], values["all_value"]
    values["dt"], values["key_positions"] = values["all_dt"], values["all_position"]
    chain.attend(bounded=1, sliding_window=0)
    chain.add("EvictKeys")
    return chain.function(BOUNDED.name, BOUNDED.output_names[:5], options.opset)


#: Operator -> its function of plugins. ExpertRouting is a plugin itself.
PLUGIN_BODIES: dict[str, Callable[[BodyOptions], ir.Function]] = {
    DYNAMIC.name: _dynamic,
    BOUNDED.name: _bounded,
}


def attach_plugins(model: ir.Model, options: BodyOptions) -> None:
    """Make the operators of an exported model run on plugins: the functions of standard operators give way to
    chains of plugins, and a node that is a plugin itself is marked as one.

    The nodes must not ask for `keep`, which no plugin gives.
    """
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type in PLUGINS:
            model.functions.pop((DOMAIN, node.op_type, ""), None)
            for name, value in _PLUGIN_ATTRIBUTES.items():
                node.attributes[name] = ir.convenience.convert_attribute(name, value)
        elif node.op_type in PLUGIN_BODIES:
            function = PLUGIN_BODIES[node.op_type](options)
            del function.outputs[len(node.outputs) :]
            model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
