"""An operator of ours is trained through as the function that it is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from doge_export.model.operators.custom import custom_op
from doge_export.model.operators.dynamic_mask_attention import dynamic_mask_attention
from doge_export.model.operators.expert_routing import expert_routing
from tests.ops.cases import ATTENTION_CASES, ROUTING_CASES, AttentionCase, RoutingCase, draw


def gradients(function: Callable[..., Any], inputs: list[Any]) -> list[torch.Tensor | None]:
    """Of a sum of all that comes out, each number with a weight of its own."""
    leaves = [
        each.detach().clone().requires_grad_(each.is_floating_point())
        if isinstance(each, torch.Tensor)
        else each
        for each in inputs
    ]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for output in outputs:
        if output.is_floating_point():
            total = total + (output.float() * torch.rand(output.shape, generator=generator)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return [each.grad if isinstance(each, torch.Tensor) else None for each in leaves]


def plain(x: torch.Tensor, rows: torch.Tensor, power: int, bias: torch.Tensor | None) -> tuple[Any, Any]:
    gathered = x[rows] ** power
    return gathered if bias is None else gathered + bias, rows + 1


SCHEMA = "(Tensor x, Tensor rows, int power, Tensor? bias) -> (Tensor, Tensor)"
operator = custom_op("doge_test::gathered", SCHEMA)(plain)


@operator.register_fake
def _fake(x: torch.Tensor, rows: torch.Tensor, power: int, bias: torch.Tensor | None) -> tuple[Any, Any]:
    return x.new_empty((*rows.shape, *x.shape[1:])), torch.empty_like(rows)


@pytest.mark.parametrize("biased", [False, True])
def test_gradients_are_those_of_the_function(biased: bool) -> None:
    x, rows = torch.randn(5, 3), torch.tensor([0, 4, 4, 1])
    inputs = [x, rows, 3, torch.randn(3) if biased else None]
    wanted, found = (gradients(each, inputs) for each in (plain, operator))
    assert wanted[0] is not None and wanted[1] is None
    for one, other in zip(wanted, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_learns_nothing_gets_no_gradient() -> None:
    x, rows, bias = torch.randn(5, 3), torch.tensor([2]), torch.randn(3, requires_grad=True)
    operator(x, rows, 2, bias)[0].sum().backward()
    assert x.grad is None and torch.equal(bias.grad, torch.ones(3))
    with torch.no_grad():
        assert not operator(x, rows, 2, bias)[0].requires_grad


@pytest.mark.parametrize("case", ATTENTION_CASES[::6], ids=lambda case: case.name)
def test_attention_is_trained_through(case: AttentionCase) -> None:
    inputs = [*draw(case).values(), *case.attributes.values()]
    wanted, found = (
        gradients(each, inputs) for each in (dynamic_mask_attention._init_fn, dynamic_mask_attention)
    )
    names = list(draw(case))
    reached = {
        name for name, each in zip(names, found, strict=False) if each is not None and each.abs().sum() > 0
    }
    assert {"query", "key", "value"} <= reached or case.length == 1
    for one, other in zip(wanted, found, strict=True):
        assert (one is None or not one.any()) == (other is None or not other.any())
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case", [each for each in ROUTING_CASES if each.dtype == torch.float32], ids=lambda case: case.name
)
def test_routing_has_the_slopes_that_differences_show(case: RoutingCase) -> None:
    """In float64, where differences can be told from rounding."""
    logits = torch.randn(case.draw().shape, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda given: expert_routing(given, *case.attributes.values())[1],
        (logits.double().requires_grad_(),),
        fast_mode=True,
    )
