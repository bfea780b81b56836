"""The plugins in TensorRT's registry: shapes, tactics, and kernels compiled while the engine is built.

The engine holds the PTX: running it needs neither Python nor Triton. Source of the rules: the
`tensorrt.plugin` module of TensorRT's Python bindings, 11.4.
"""

import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.triton import ptx
from doge_export.triton.plugin import Plugin
from doge_export.triton.table import NAMESPACE, PLUGINS

__all__ = ["register_plugins", "suits"]

#: Our names of types, TensorRT's in a combination, and the members of its DataType.
_TYPES = {
    "float32": ("FP32", "FLOAT"),
    "float16": ("FP16", "HALF"),
    "bfloat16": ("BF16", "BF16"),
    "int64": ("INT64", "INT64"),
    "int32": ("INT32", "INT32"),
}
_COMMON = "|".join(_TYPES[name][0] for name in ("float32", "float16", "bfloat16"))


def register_plugins(capability: int = 80) -> list[str]:
    """Register every plugin with TensorRT, once a process; their kernels will be compiled for `capability`
    (80: the PTX runs on compute capability 8.0 and all later ones). Returns the plugins' ids.

    Raises:
        DogeExportError: TensorRT or Triton is not installed.
    """
    try:
        import tensorrt.plugin as trtp

        import triton  # noqa: F401
    except ImportError as error:
        raise DogeExportError(
            f"The plugins cannot be registered: {error}.",
            "Install TensorRT and Triton: pip install tensorrt 'doge-export[triton]'.",
        ) from None
    for plugin in PLUGINS.values():
        if not hasattr(trtp.op, NAMESPACE) or not hasattr(getattr(trtp.op, NAMESPACE), plugin.name):
            _register(plugin, capability)
    return [f"{NAMESPACE}::{name}" for name in PLUGINS]


def suits(capability: str) -> int:
    """What `register_plugins` compiles for on a GPU of compute capability "8.9": that, or 80, which runs on
    any later one."""
    number = int(capability.replace(".", ""))
    return number if number in ptx.CAPABILITIES else 80


def _signature(function: Callable[..., Any], parameters: dict[str, Any], result: Any) -> Callable[..., Any]:
    """`function` with the parameters that the bindings will look for."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=of) for name, of in parameters.items()],
        return_annotation=result,
    )
    return function


def _register(plugin: Plugin, capability: int) -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    plugin_id = f"{NAMESPACE}::{plugin.name}"
    data_types = {name: getattr(trt.DataType, member) for name, (_, member) in _TYPES.items()}
    names = {value: name for name, value in data_types.items()}
    count = len(plugin.inputs)
    tensors = dict.fromkeys(plugin.inputs, trtp.TensorDesc)
    results = GenericAlias(tuple, (trtp.TensorDesc,) * len(plugin.outputs))

    def common(inputs: Sequence[Any]) -> str:
        first = next(i for i, name in enumerate(plugin.inputs) if name not in plugin.types)
        return names[inputs[first].dtype]

    def describe(*inputs: Any, **attributes: Any) -> Any:
        shapes = {name: tuple(x.shape_expr) for name, x in zip(plugin.inputs, inputs, strict=True)}
        described = []
        for name, shape in zip(plugin.outputs, plugin.shapes(shapes, attributes), strict=True):
            if name in plugin.aliased:
                described.append(inputs[plugin.inputs.index(plugin.aliased[name])].aliased())
            else:
                of = data_types[plugin.type_of(name, common(inputs))]
                described.append(trtp.from_shape_expr(tuple(shape), of))
        return tuple(described)

    def combinations(*_: Any) -> Any:
        types = [
            _TYPES[plugin.types[name]][0] if name in plugin.types else _COMMON
            for name in (*plugin.inputs, *plugin.outputs)
        ]
        tactics = list(range(1, len(plugin.tactics) + 1))
        return [trtp.AutoTuneCombination(", ".join(types), "LINEAR", tactics)]

    def build(*arguments: Any) -> Any:
        inputs, rest = arguments[:count], arguments[count:]
        attributes = dict(zip(plugin.attributes, rest[:-2], strict=True))
        outputs, tactic = rest[-2:]
        shapes = {
            name: tuple(x.shape_expr)
            for name, x in zip((*plugin.inputs, *plugin.outputs), (*inputs, *outputs), strict=True)
        }
        launch = plugin.launch(shapes, attributes, plugin.tactics[max(tactic - 1, 0)])
        compiled = ptx.compile_launch(plugin, launch, common(inputs), capability)
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = launch.grid
        parameters.block_x, parameters.shared_mem = compiled.threads, compiled.shared
        scalars = trtp.SymIntExprs(len(launch.scalars))
        for i, scalar in enumerate(launch.scalars):
            scalars[i] = trtp.SymInt32(scalar)
        return compiled.name, compiled.ptx, parameters, scalars

    trtp.register(plugin_id)(_signature(describe, {**tensors, **plugin.attributes}, results))
    outputs = {"outputs": results}
    trtp.autotune(plugin_id)(_signature(combinations, {**tensors, **outputs}, list[trtp.AutoTuneCombination]))
    trtp.aot_impl(plugin_id)(
        _signature(
            build,
            {**tensors, **plugin.attributes, **outputs, "tactic": int},
            tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs],
        )
    )
