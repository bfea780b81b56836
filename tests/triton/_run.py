"""Plugins on Triton's interpreter, and whole operators as the chains of plugins that TensorRT would see."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from onnx import inliner
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from triton import language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from doge_export.graph.operators import DOMAIN, BodyOptions, Operator
from doge_export.triton.bodies import PLUGIN_BODIES
from doge_export.triton.table import PLUGINS
from tests.ops.bodies import one_node_model
from tests.ops.cases import as_numpy
from tests.triton._registry import build

__all__ = ["LIMITS", "TYPES", "Ran", "relative", "run_model", "run_operator", "run_plugin"]

Array = npt.NDArray[Any]
TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
#: The largest relative error by dtype.
LIMITS = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def relative(got: torch.Tensor, wanted: Array) -> float:
    """The largest difference, in parts of the largest number that is wanted."""
    difference = np.abs(got.double().numpy() - wanted).max(initial=0.0)
    assert not np.isnan(difference)
    return float(difference / max(np.abs(wanted).max(initial=0.0), 1e-30))


@dataclass
class Ran:
    """`inner`: outputs of every plugin, by its name and theirs. `errors`: what a test found, by output."""

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    inner: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def run_plugin(
    name: str, inputs: dict[str, torch.Tensor], attributes: dict[str, Any], tactic: int = 1
) -> dict[str, torch.Tensor]:
    """Outputs by name, of one launch in the interpreter, with the kernel, grid and arguments of the
    registered plugin. What the kernel does not write is garbage."""
    plugin = PLUGINS[name]
    built = build(plugin, [inputs[key] for key in plugin.inputs], attributes, tactic)
    inputs = {key: inputs[key].clone(memory_format=torch.contiguous_format) for key in plugin.inputs}
    outputs = {}
    for key, (shape, dtype) in zip(plugin.outputs, built.outputs, strict=True):
        if key in plugin.aliased:
            outputs[key] = inputs[plugin.aliased[key]]
        else:
            garbage = float("nan") if dtype.is_floating_point else -(2**31)
            outputs[key] = torch.full(shape, garbage, dtype=dtype)
    constants = dict(built.launch.constants)
    if "WIDE_DOT" in constants:
        constants["WIDE_DOT"] = torch.bfloat16 in [tensor.dtype for tensor in inputs.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", _call_once_patched())
        patch.setattr(InterpreterBuilder, "cast_impl", _cast)
        built.launch.kernel[built.grid](*inputs.values(), *built.scalars, *outputs.values(), **constants)
    return outputs


_interpreted_cast = InterpreterBuilder.cast_impl


def _cast(builder: Any, source: TensorHandle, to: Any) -> TensorHandle:
    """float32 to bfloat16 rounds to the nearest, ties to even, as a GPU does; the interpreter cuts off."""
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        rounded = source.data.astype(ml_dtypes.bfloat16).view(np.uint16)
        return TensorHandle(rounded, to.scalar)
    return _interpreted_cast(builder, source, to)


def _call_once_patched() -> Callable[..., Any]:
    """How a kernel of one launch calls functions. The interpreter's own way patches Triton's language anew at
    every call, which takes most of the time; once for each module that functions come from is enough."""
    original, patched = InterpretedFunction.__call__, set[str]()

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        if function.fn.__module__ in patched:
            return function.rewrite()(*arguments, **named)
        patched.add(function.fn.__module__)
        return original(function, *arguments, **named)

    return call


def run_operator(
    operator: Operator,
    options: BodyOptions,
    inputs: dict[str, torch.Tensor | None],
    attributes: dict[str, Any],
    outputs: int,
    tactic: int = 2,
) -> Ran:
    """The operator's first `outputs` outputs: a model of one node and the function of plugins beside it,
    inlined as TensorRT's parser does, every plugin run in the interpreter with its `tactic`, or its last."""
    proto = one_node_model(operator, options, inputs, attributes, outputs=outputs)
    model = ir.from_proto(proto)
    function = PLUGIN_BODIES[operator.name](options)
    model.functions[function.identifier()] = function
    return run_model(model, inputs, tactic)


def run_model(model: ir.Model, inputs: dict[str, torch.Tensor | None], tactic: int = 2) -> Ran:
    """The same for any model of which some nodes are plugins."""
    ran = Ran()
    flat = inliner.inline_local_functions(ir.to_proto(model))
    evaluator = ReferenceEvaluator(flat, new_ops=[_op(name, tactic, ran) for name in PLUGINS])
    feed = {name: as_numpy(tensor) for name, tensor in inputs.items() if tensor is not None}
    names = [output.name for output in flat.graph.output]
    arrays = evaluator.run(names, feed)
    ran.outputs = {name: _tensor(array) for name, array in zip(names, arrays, strict=True)}
    return ran


def _op(name: str, tactic: int, ran: Ran) -> type[OpRun]:
    """The plugin as an operator of onnx's reference evaluator; what it gives goes into `ran` too."""
    plugin = PLUGINS[name]

    def run(self: Any, *arrays: Array, **given: Any) -> tuple[Array, ...]:
        inputs = dict(zip(plugin.inputs, map(_tensor, arrays), strict=True))
        attributes = {key: of(given[key]) for key, of in plugin.attributes.items()}
        outputs = run_plugin(name, inputs, attributes, min(tactic, len(plugin.tactics)))
        ran.inner[name] = outputs
        return tuple(map(as_numpy, outputs.values()))

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
