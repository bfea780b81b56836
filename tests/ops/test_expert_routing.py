"""Every body of ExpertRouting through one table: torch twin, ONNX function, slow oracle, transformers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.expert_routing import OPERATOR
from doge_export.model.operators.expert_routing import expert_routing
from tests.ops.bodies import one_node_model, run_body, run_model
from tests.ops.cases import ROUTING_CASES, RoutingCase
from tests.ops.oracles import routing_oracle

table = pytest.mark.parametrize("case", ROUTING_CASES, ids=lambda case: case.name)


def options_of(case: RoutingCase) -> BodyOptions:
    dtype = ir.DataType.FLOAT16 if case.dtype == torch.float16 else ir.DataType.FLOAT
    return BodyOptions(dtype=dtype, per_token=case.per_token, norm_topk_prob=case.norm)


@table
def test_twin_is_what_the_oracle_says(case: RoutingCase) -> None:
    logits = case.draw()
    indices, weights = expert_routing(logits, *case.attributes.values())
    expected_indices, expected_weights = routing_oracle(case, logits)
    np.testing.assert_array_equal(indices, expected_indices)
    tolerance = 2e-3 if case.dtype == torch.float16 else 1e-6
    np.testing.assert_allclose(weights.float(), expected_weights, rtol=tolerance, atol=1e-7)
    assert weights.dtype == case.dtype and indices.dtype == torch.int64


@table
def test_function_body_is_the_twin(case: RoutingCase) -> None:
    logits = case.draw()
    indices, weights = expert_routing(logits, *case.attributes.values())
    got = run_body(OPERATOR, options_of(case), {"router_logits": logits}, case.attributes)
    np.testing.assert_array_equal(got["indices"], indices)
    tolerance = 2e-3 if case.dtype == torch.float16 else 1e-6
    np.testing.assert_allclose(got["weights"].astype(np.float32), weights.float(), rtol=tolerance, atol=1e-7)
    assert got["weights"].dtype == weights.numpy().dtype


@given(
    num_keys=st.integers(1, 6),
    k=st.integers(1, 36),
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    per_token=st.booleans(),
    norm=st.booleans(),
    logits=st.sampled_from(["random", "integers", "equal"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_all_three_on_random_cases(seed: int, num_keys: int, k: int, **others: object) -> None:
    case = RoutingCase("", num_keys=num_keys, k=min(k, num_keys**2), **others)  # type: ignore[arg-type]
    logits = case.draw(seed)
    expected, _ = routing_oracle(case, logits)
    indices, weights = expert_routing(logits, *case.attributes.values())
    np.testing.assert_array_equal(indices, expected)
    got = run_body(OPERATOR, options_of(case), {"router_logits": logits}, case.attributes)
    np.testing.assert_array_equal(got["indices"], expected)
    np.testing.assert_allclose(got["weights"], weights, rtol=1e-5, atol=1e-7)


def test_one_body_serves_every_number_of_tokens() -> None:
    base = RoutingCase("", num_keys=6, k=8, logits="integers")
    inputs = {"router_logits": base.draw()}
    model = one_node_model(OPERATOR, options_of(base), inputs, base.attributes, symbolic=True)
    for batch, length in ((1, 1), (1, 2), (3, 5), (2, 40)):
        case = RoutingCase("", num_keys=6, k=8, logits="integers", batch=batch, length=length)
        logits = case.draw(length)
        got = run_model(model, {"router_logits": logits})
        np.testing.assert_array_equal(got["indices"], expert_routing(logits, *case.attributes.values())[0])


@pytest.mark.parametrize("kind", ["random", "equal"])
def test_both_views_agree_on_a_single_token(kind: str) -> None:
    cases = [RoutingCase("", length=1, k=9, logits=kind, per_token=per_token) for per_token in (False, True)]
    first, second = (expert_routing(case.draw(), *case.attributes.values()) for case in cases)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_per_token_looks_at_no_other_token() -> None:
    case = RoutingCase("", batch=2, length=5, k=7, per_token=True)
    logits = case.draw()
    indices, weights = expert_routing(logits, *case.attributes.values())
    for row in range(2):
        for column in range(5):
            alone = logits[row : row + 1, column : column + 1]
            one_indices, one_weights = expert_routing(alone, *case.attributes.values())
            place = row * 5 + column
            assert torch.equal(one_indices[0], indices[place])
            assert torch.equal(one_weights[0], weights[place])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("num_experts", [16, 20])  # floor(sqrt(20)) = 4
@pytest.mark.parametrize("k", [3, 11])
def test_reference_view_is_transformers(num_experts: int, k: int, norm: bool) -> None:
    """DogeCDMoE with experts that answer with their own number: its output is the routing itself."""
    from transformers import DogeConfig
    from transformers.models.doge.modeling_doge import DogeCDMoE

    size = num_experts
    config = DogeConfig(
        hidden_size=size,
        intermediate_size=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        is_moe=True,
        num_experts=num_experts,
        num_experts_per_tok=k,
        norm_topk_prob=norm,
        hidden_act="relu",
    )
    torch.manual_seed(0)
    module = DogeCDMoE(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.router_gate.weight.normal_()
        module.down_embed.weight[:, 0] = 1
        module.up_embed.weight.copy_(torch.eye(num_experts))
        hidden = torch.randn(3, 7, size)
        hidden[..., 0] = 1
        output, _ = module(hidden)
        logits = module.router_gate(hidden)
    indices, weights = expert_routing(logits, 4, k, 0, int(norm))
    expected = torch.zeros(21, num_experts).scatter_(1, indices, weights)
    torch.testing.assert_close(output.reshape(21, -1), expected, rtol=1e-5, atol=1e-6)
