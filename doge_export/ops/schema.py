"""What every operator of this project is made of: one specification, and the bodies that hold to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from doge_export.ops.function import DOMAIN, VERSION

__all__ = ["BodyOptions", "Operator"]

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
class Operator:
    """One operator: names, schema, and the builder of its ONNX function body."""

    name: str
    torch_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, type]
    body: Callable[[BodyOptions], ir.Function]
    optional_inputs: tuple[str, ...] = ()
    integer_inputs: tuple[str, ...] = ()
    double_inputs: tuple[str, ...] = ()
    optional_outputs: tuple[str, ...] = ()
    bool_outputs: tuple[str, ...] = ()
    integer_outputs: tuple[str, ...] = ()

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The OpSchema that exporter, checker and shape inference share."""
        schema = onnx.defs.OpSchema
        option = schema.FormalParameterOption

        def parameter(name: str, optional: bool, kind: str) -> onnx.defs.OpSchema.FormalParameter:
            return schema.FormalParameter(
                name, kind, param_option=option.Optional if optional else option.Single
            )

        kinds = {
            "int": "tensor(int64)",
            "bool": "tensor(bool)",
            "double": "tensor(double)",
            "float": "T",
        }

        def kind(name: str) -> str:
            if name in self.integer_inputs or name in self.integer_outputs:
                return kinds["int"]
            if name in self.double_inputs:
                return kinds["double"]
            return kinds["bool"] if name in self.bool_outputs else kinds["float"]

        attribute_types = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            inputs=[parameter(n, n in self.optional_inputs, kind(n)) for n in self.inputs],
            outputs=[parameter(n, n in self.optional_outputs, kind(n)) for n in self.outputs],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
            attributes=[
                schema.Attribute(name, attribute_types[of], required=True)
                for name, of in self.attributes.items()
            ],
        )
