"""A function of torch that the exporter sees as one operator, and that can be trained through."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from doge_export.graph.operators import Operator

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

__all__ = ["custom_op", "implementation"]

#: Takes an operator's inputs and attributes by their names, and gives its outputs in order.
ByName = Callable[[SimpleNamespace], tuple[torch.Tensor, ...]]


def custom_op(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], "CustomOpDef"]:
    """Decorates a function that changes none of its arguments. Its gradients are those of the function, run
    once more when they are asked for: nothing but the arguments is kept until then."""

    def define(function: Callable[..., Any]) -> "CustomOpDef":
        operator = torch.library.custom_op(name, function, mutates_args=(), schema=schema)

        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.tensors = [index for index, each in enumerate(inputs) if isinstance(each, torch.Tensor)]
            ctx.others = [None if isinstance(each, torch.Tensor) else each for each in inputs]
            ctx.save_for_backward(*(inputs[index] for index in ctx.tensors))

        def backward(context: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
            inputs = list(context.others)
            for index, tensor in zip(context.tensors, context.saved_tensors, strict=True):
                inputs[index] = tensor.detach().requires_grad_(context.needs_input_grad[index])
            with torch.enable_grad():
                result = function(*inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            reached = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            wanted = [index for index in context.tensors if context.needs_input_grad[index]]
            input_gradients: list[torch.Tensor | None] = [None] * len(inputs)
            if reached and wanted:
                computed = torch.autograd.grad(
                    [output for output, _ in reached],
                    [inputs[index] for index in wanted],
                    [gradient for _, gradient in reached],
                    allow_unused=True,
                )
                for index, gradient in zip(wanted, computed, strict=True):
                    input_gradients[index] = gradient
            return tuple(input_gradients)

        operator.register_autograd(backward, setup_context=keep)
        return operator

    return define


def implementation(operator: Operator, shapes: ByName) -> Callable[[ByName], "CustomOpDef"]:
    """Decorates the torch implementation of `operator`: what comes of it takes the inputs and the attributes
    in the schema's order. `shapes` gives empty outputs, for a trace, which has no numbers."""
    names = (*operator.input_names, *operator.attributes)

    def positional(function: ByName) -> Callable[..., tuple[torch.Tensor, ...]]:
        return lambda *arguments: function(SimpleNamespace(**dict(zip(names, arguments, strict=True))))

    def define(function: ByName) -> "CustomOpDef":
        defined = custom_op(operator.torch_name, operator.torch_schema())(positional(function))
        defined.register_fake(positional(shapes))
        return defined

    return define
