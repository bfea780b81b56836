"""What describes a TensorRT plugin, without TensorRT: names, types, shapes, and how its kernel is launched.

Dimensions are ints, or TensorRT's symbolic expressions while it builds an engine: the same functions
compute shapes, grid and arguments in both cases. Arguments are in TensorRT's order for kernels compiled
ahead of time: inputs, int32 scalars, outputs. All else is a constant of the compilation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Attributes",
    "Dim",
    "Launch",
    "Plugin",
    "Shapes",
    "ceil_div",
    "constant",
    "floor_div",
    "maximum",
    "minimum",
    "power_of_two",
]

Dim = Any  # int, or tensorrt.plugin.ShapeExpr, whose operators are ints' own
Shapes = Mapping[str, Sequence[Dim]]
Attributes = Mapping[str, Any]


def ceil_div(a: Dim, b: Dim) -> Dim:
    """a / b, rounded up."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    return _symbolic().cdiv(a, b)


def floor_div(a: Dim, b: Dim) -> Dim:
    """a / b, rounded down."""
    if isinstance(a, int) and not isinstance(b, int):
        a = _symbolic().ShapeExpr(a)
    return a // b


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of the two."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return _symbolic().max(a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of the two."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return _symbolic().min(a, b)


def constant(dim: Dim) -> int:
    """A dimension that is fixed when the engine is built."""
    return dim if isinstance(dim, int) else int(dim.constant_value())


def power_of_two(number: int, at_least: int = 1) -> int:
    """The smallest power of two that is at least `number` and `at_least`."""
    return max(at_least, 1 << (number - 1).bit_length())


def _symbolic() -> Any:
    import tensorrt.plugin

    return tensorrt.plugin


@dataclass(frozen=True)
class Launch:
    """One launch of `kernel`, a function in the Triton language. `scalars` stand between its inputs and
    its outputs."""

    kernel: Any
    grid: tuple[Dim, Dim, Dim]
    scalars: tuple[Dim, ...]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Plugin:
    """The TensorRT plugin `doge::<name>`.

    `types`: of inputs and outputs that are not of the tensors' common type T.
    `shapes` gives the outputs' shapes from the inputs'; `launch` gets those of both, the attributes and one
    of `tactics`, which are settings of equal results. `aliased`: outputs that are an input's memory."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, type]
    shapes: Callable[[Shapes, Attributes], Sequence[Sequence[Dim]]]
    launch: Callable[[Shapes, Attributes, Mapping[str, int]], Launch]
    tactics: tuple[Mapping[str, int], ...]
    types: Mapping[str, str] = field(default_factory=dict)
    aliased: Mapping[str, str] = field(default_factory=dict)

    def type_of(self, name: str, common: str) -> str:
        """The type of an input or output where T is `common`: "float32" and the like."""
        return self.types.get(name, common)
