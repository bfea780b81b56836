"""What every operator of this project is made of: one specification, and the bodies that hold to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from doge_export.graph.operators.function import DOMAIN, VERSION

__all__ = ["BodyOptions", "Operator", "Port", "PortType", "ports"]

#: The element type of a port; "T" is the file's floating point.
PortType = Literal["T", "int64", "bool", "double"]

_NUMPY: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class BodyOptions:
    """What an ONNX function body is specialised for: the file's dtype, its model, and its target.

    `branches`: the target runs If. `float64`: the target has float64 arithmetic. `window_open`: no row is
    ever longer than keep_window_size, so that nothing has to be sorted.
    """

    dtype: ir.DataType = ir.DataType.FLOAT
    opset: int = 23
    static: bool = False
    sliding_window: bool = False
    per_token: bool = False
    norm_topk_prob: bool = False
    branches: bool = True
    float64: bool = True
    window_open: bool = False

    @property
    def numpy(self) -> Any:
        """The numpy dtype of the file's floating point tensors."""
        return _NUMPY[self.dtype]

    @property
    def lowest(self) -> float:
        """finfo.min of the dtype: what the reference fills masked scores with."""
        info: Any = ml_dtypes.finfo(self.numpy)  # type: ignore[no-untyped-call]
        return float(info.min)


@dataclass(frozen=True)
class Port:
    """A formal input or output. `type`: of its elements, "T" being the file's floating point.

    `optional`: a node may leave it out. `in_torch`: the torch operator has it, too.
    """

    name: str
    type: PortType = "T"
    optional: bool = False
    in_torch: bool = True


def ports(*names: str) -> tuple[Port, ...]:
    """Ports of the file's floating point type that no node leaves out."""
    return tuple(Port(name) for name in names)


@dataclass(frozen=True)
class Operator:
    """One operator: its names, its ports and attributes in order, and the builder of its ONNX function body.

    Whoever has to know the ports reads them here: the schemas of ONNX and of torch, the exporter's
    translation, and the torch implementation, which gets its arguments by these names.
    """

    name: str
    torch_name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: Mapping[str, type]
    body: Callable[[BodyOptions], ir.Function]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of all inputs, in order."""
        return tuple(port.name for port in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of all outputs, in order."""
        return tuple(port.name for port in self.outputs)

    def body_inputs(self, static: bool) -> tuple[str, ...]:
        """The names of a body's inputs: optional ones are those of a static cache. A body has no more inputs
        than its nodes have: TensorRT's parser counts them."""
        return tuple(port.name for port in self.inputs if static or not port.optional)

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The OpSchema that exporter, checker and shape inference share."""
        schema = onnx.defs.OpSchema
        option = schema.FormalParameterOption

        def parameter(port: Port) -> onnx.defs.OpSchema.FormalParameter:
            kind = "T" if port.type == "T" else f"tensor({port.type})"
            return schema.FormalParameter(
                port.name, kind, param_option=option.Optional if port.optional else option.Single
            )

        attribute_types = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            inputs=[parameter(port) for port in self.inputs],
            outputs=[parameter(port) for port in self.outputs],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
            attributes=[
                schema.Attribute(name, attribute_types[of], required=True)
                for name, of in self.attributes.items()
            ],
        )

    def torch_schema(self) -> str:
        """The torch operator's schema: the inputs, then the attributes, all of them positional."""
        arguments = [f"Tensor{'?' if port.optional else ''} {port.name}" for port in self.inputs]
        arguments += [f"{of.__name__} {name}" for name, of in self.attributes.items()]
        results = ["Tensor" for port in self.outputs if port.in_torch]
        return f"({', '.join(arguments)}) -> ({', '.join(results)})"
