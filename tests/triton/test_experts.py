"""CDMoE's two kernels: routing through the table of its operator, and the mixture against a plain sum."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from doge_export.core.config import ACTIVATIONS
from doge_export.model.feed_forward import ACTIVATION_FUNCTIONS
from doge_export.model.operators.expert_routing import expert_routing
from tests.ops.cases import ROUTING_CASES, RoutingCase
from tests.ops.oracles import routing_oracle
from tests.triton._run import LIMITS, relative, run_plugin

#: Hidden size, and experts of a token.
MIXTURES = ((20, 3), (48, 17), (200, 8))


@pytest.mark.parametrize("case", ROUTING_CASES, ids=lambda case: case.name)
def test_routing_is_the_oracle(case: RoutingCase) -> None:
    check_routing(case)


def check_routing(case: RoutingCase) -> float:
    """The largest error of a weight."""
    logits = case.draw()
    indices, weights = routing_oracle(case, logits)
    got = run_plugin("ExpertRouting", {"router_logits": logits}, case.attributes)
    np.testing.assert_array_equal(got["indices"], indices)
    error = relative(got["weights"], weights)
    assert error < LIMITS[case.dtype]
    assert got["weights"].dtype == case.dtype
    return error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_token", [False, True])
def test_sums_are_rounded_as_the_logits_are(dtype: torch.dtype, per_token: bool) -> None:
    """Pairs whose sums are equal in half precision are ties, whatever they are in float32."""
    case = RoutingCase("", num_keys=30, k=12, length=9, per_token=per_token, dtype=dtype)
    logits = (case.draw().float() + torch.tensor([100.0, 0.0]).repeat_interleave(30)).to(dtype)
    indices, weights = expert_routing(logits, *case.attributes.values())
    got = run_plugin("ExpertRouting", {"router_logits": logits}, case.attributes, tactic=2)
    np.testing.assert_array_equal(got["indices"], indices)
    assert relative(got["weights"], weights.double().numpy()) < LIMITS[dtype]
    halves = logits.float().reshape(2, -1, 30)
    exact = replace(case, dtype=torch.float32)
    other, _ = expert_routing(halves.reshape(logits.shape), *exact.attributes.values())
    assert (other != indices).any(), "no two sums are equal but for rounding: the case shows nothing"


def mixture(inputs: dict[str, torch.Tensor], activation: str) -> npt.NDArray[Any]:
    """Expert by expert, in float64."""
    tokens = inputs["hidden_states"].double().flatten(0, 1)
    act, output = ACTIVATION_FUNCTIONS[activation], torch.zeros_like(tokens)
    for token, state in enumerate(tokens):
        for expert, weight in zip(inputs["indices"][token], inputs["weights"][token].double(), strict=True):
            share = act((inputs["down_embed"][expert].double() * state).sum()) * weight
            output[token] += share * inputs["up_embed"][expert].double()
    return output.reshape(inputs["hidden_states"].shape).numpy()


def draw(hidden: int, top: int, dtype: torch.dtype, tokens: int = 3) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(top)
    floats = {
        "hidden_states": torch.randn(1, tokens, hidden, generator=rng),
        "weights": torch.randn(tokens, top, generator=rng).softmax(-1),
        "down_embed": torch.randn(49, hidden, generator=rng) / 4,
        "up_embed": torch.randn(49, hidden, generator=rng),
    }
    indices = torch.randint(0, 49, (tokens, top), generator=rng)
    return {"indices": indices, **{name: tensor.to(dtype) for name, tensor in floats.items()}}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mixture_with_every_activation(activation: str) -> None:
    inputs = draw(32, 8, torch.float32, tokens=1)
    got = run_plugin("ExpertMix", inputs, {"activation": activation})
    assert relative(got["output"], mixture(inputs, activation)) < 1e-5


@pytest.mark.parametrize("tactic", [1, 2])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("hidden, top", MIXTURES)
def test_mixture_is_the_sum(hidden: int, top: int, dtype: torch.dtype, tactic: int) -> None:
    check_mixture(hidden, top, dtype, tactic)


def check_mixture(hidden: int, top: int, dtype: torch.dtype, tactic: int) -> float:
    """The largest error of the output."""
    inputs = draw(hidden, top, dtype)
    got = run_plugin("ExpertMix", inputs, {"activation": "silu"}, tactic)
    error = relative(got["output"], mixture(inputs, "silu"))
    assert error < LIMITS[dtype]
    return error
