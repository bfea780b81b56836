"""What TensorRT asks a registered plugin while it builds an engine, asked here: shapes, tactics, launch.

TensorRT hands the bindings an expression builder that keeps dimensions symbolic; the one here has numbers.
All between that and the kernel is what a build runs: the registry, the creator, the bindings' plugin class,
and the functions that `register_plugins` gave them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.triton import ptx, register
from doge_export.triton.plugin import Launch, Plugin
from doge_export.triton.table import NAMESPACE
from tests.triton._bindings import load_bindings, name_bindings

__all__ = ["Built", "build", "trt"]

trt, _ = load_bindings()

_DTYPES = {
    torch.float32: trt.DataType.FLOAT,
    torch.float16: trt.DataType.HALF,
    torch.bfloat16: trt.DataType.BF16,
    torch.int64: trt.DataType.INT64,
    torch.int32: trt.DataType.INT32,
}
_compile = ptx.compile_launch
_TORCH = {value: key for key, value in _DTYPES.items()}
_FIELDS = {
    int: lambda value: (np.array([value]), trt.PluginFieldType.INT64),
    float: lambda value: (np.array([value]), trt.PluginFieldType.FLOAT64),
    str: lambda value: (value.encode(), trt.PluginFieldType.CHAR),
}


class _Number(trt.IDimensionExpr):
    """A dimension that is known. The bindings know it by its type alone: none of it is made in C++."""

    value: int

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class _Builder:
    """IExprBuilder for known dimensions."""

    def constant(self, value: int) -> _Number:
        number: _Number = _Number.__new__(_Number)
        number.value = value
        return number

    def operation(self, operation: trt.DimensionOperation, a: _Number, b: _Number) -> _Number:
        x, y, of = a.value, b.value, trt.DimensionOperation
        compute = {
            of.SUM: lambda: x + y,
            of.PROD: lambda: x * y,
            of.MAX: lambda: max(x, y),
            of.MIN: lambda: min(x, y),
            of.SUB: lambda: x - y,
            of.FLOOR_DIV: lambda: x // y,
            of.CEIL_DIV: lambda: -(-x // y),
        }
        return self.constant(compute[operation]())


class _Scalars(list[Any]):
    """ISymExprs: grown to `nbSymExprs`, then set one by one."""

    def __setattr__(self, name: str, value: int) -> None:
        assert name == "nbSymExprs"
        self[:] = [None] * value


@dataclass(frozen=True)
class Built:
    """`outputs`: shape and dtype of each. `launch`: what the plugin's own function said of the kernel;
    grid and scalars are what arrived at TensorRT."""

    outputs: list[tuple[tuple[int, ...], torch.dtype]]
    aliased: list[int]
    tactics: list[int]
    grid: tuple[int, int, int]
    block: int
    shared: int
    scalars: list[int]
    launch: Launch
    kernel: tuple[str, bytes]


def build(
    plugin: Plugin,
    inputs: Sequence[torch.Tensor],
    attributes: dict[str, Any],
    tactic: int,
    compiles: bool = False,
) -> Built:
    """The plugin on inputs of these shapes. `compiles`: to PTX, which the interpreter has no use for."""
    from tensorrt_bindings.plugin import _tensor

    # A field does not keep its data alive.
    values = [_FIELDS[of](attributes[name]) for name, of in plugin.attributes.items()]
    fields = trt.PluginFieldCollection(
        [trt.PluginField(name, *value) for name, value in zip(plugin.attributes, values, strict=True)]
    )
    launches: list[Launch] = []

    def compile_launch(plugin: Plugin, launch: Launch, dtype: str, capability: int) -> ptx.Compiled:
        launches.append(launch)
        if compiles:
            return _compile(plugin, launch, dtype, capability)
        return ptx.Compiled(plugin.name, "no PTX", launch.warps * 32, 0)

    builder, dtypes = _Builder(), [_DTYPES[tensor.dtype] for tensor in inputs]
    with pytest.MonkeyPatch.context() as patch:
        name_bindings(patch)
        register.register_plugins()
        creator = trt.get_plugin_registry().get_creator(plugin.name, "1", NAMESPACE)
        request = trt.QuickPluginCreationRequest.STRICT_AOT
        made = creator.create_plugin(plugin.name, NAMESPACE, fields, trt.TensorRTPhase.BUILD, request)
        patch.setattr(ptx, "compile_launch", compile_launch)
        patch.setattr(trt, "DimsExprs", lambda count: [None] * count)
        patch.setattr(_tensor, "SymExprImpl", lambda expression: expression._expr)
        types = made.get_output_data_types(dtypes, [tensor.dim() for tensor in inputs])
        dims = [[builder.constant(size) for size in tensor.shape] for tensor in inputs]
        shapes = [
            tuple(number.value for number in shape) for shape in made.get_output_shapes(dims, [], builder)
        ]
        described = [
            _described(shape, of)
            for shape, of in zip([*(tuple(x.shape) for x in inputs), *shapes], [*dtypes, *types], strict=True)
        ]
        combinations = made.get_supported_format_combinations(described, len(inputs))
        supported = [c.type for c in combinations]
        wanted = [d.desc.type for d in described]
        assert wanted in [supported[i : i + len(wanted)] for i in range(0, len(supported), len(wanted))], (
            "TensorRT would not take these types"
        )
        made.configure_plugin(described[: len(inputs)], described[len(inputs) :])
        tactics = made.get_valid_tactics()
        made.set_tactic(tactic)
        parameters, scalars = SimpleNamespace(), _Scalars()
        made.get_launch_params(dims, described, len(inputs), parameters, scalars, builder)
        kernel = made.get_kernel(
            [d.desc for d in described[: len(inputs)]], [d.desc for d in described[len(inputs) :]]
        )
    grid = tuple(getattr(parameters, f"grid_{axis}").value for axis in "xyz")
    return Built(
        outputs=list(zip(shapes, [_TORCH[of] for of in types], strict=True)),
        aliased=[made.get_aliased_input(i) for i in range(len(shapes))],
        tactics=tactics,
        grid=grid,
        block=parameters.block_x.value,
        shared=parameters.shared_mem.value,
        scalars=[number.value for number in scalars],
        launch=launches[0],
        kernel=kernel,
    )


def _described(shape: tuple[int, ...], of: trt.DataType) -> trt.DynamicPluginTensorDesc:
    described = trt.DynamicPluginTensorDesc()
    inner = trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format = trt.Dims(shape), of, trt.TensorFormat.LINEAR
    described.desc = inner
    return described
