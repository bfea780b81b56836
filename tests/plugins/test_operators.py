"""The kernels of the operators that stand alone, through the table that their bodies go through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export import plugin_library
from doge_export.graph.operators import dynamic_mask_attention as attention
from doge_export.graph.operators import expert_routing as routing
from doge_export.model.operators.expert_routing import expert_routing
from tests.ops import test_dynamic_mask_attention as attention_table
from tests.ops import test_expert_routing as routing_table
from tests.ops.bodies import one_node_model, run_body, run_model
from tests.ops.cases import ATTENTION_CASES, ROUTING_CASES, AttentionCase, RoutingCase, draw
from tests.ops.oracles import attention_oracle, routing_oracle

options_of, run_twin = attention_table.options_of, attention_table.run_twin


def check_attention(case: AttentionCase, seed: int = 0) -> None:
    inputs = draw(case, seed)
    twin = run_twin(case, inputs)
    got = run_body(attention.OPERATOR, options_of(case), inputs, case.attributes, library=plugin_library())
    tolerance = 4e-3 if case.dtype == torch.float16 else 2e-5
    for name, tensor in twin.items():
        assert got[name].shape == tuple(tensor.shape), name
        assert got[name].dtype == tensor.numpy().dtype
        np.testing.assert_allclose(
            got[name].astype(np.float32), tensor.float(), rtol=tolerance, atol=tolerance, err_msg=name
        )
    written = attention_table.written(case)[:, None, :, None]
    values = (
        array if not case.static else np.where(written, array, 0)
        for array in (got["present_value"], twin["present_value"].numpy())
    )
    np.testing.assert_array_equal(*values)
    keep = attention_table.twin_selection(case, inputs, twin["present_dt"])
    np.testing.assert_array_equal(got["keep"], keep)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
def test_attention_is_the_twin(case: AttentionCase) -> None:
    check_attention(case)


@given(
    past=st.integers(0, 40),
    length=st.integers(1, 20),
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (8, 1)]),
    head_dim=st.sampled_from([2, 4, 6, 8, 16, 24, 32]),
    window=st.integers(1, 30),
    sliding=st.integers(0, 30),
    mask=st.one_of(st.just("holes"), st.tuples(*[st.integers(0, 60)] * 3)),
    static=st.booleans(),
    values=st.sampled_from(["random", "exact", "equal"]),
    A=st.sampled_from(["random", "zero", "negative"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_attention_is_the_oracle_on_random_cases(seed: int, static: bool, mask: object, **shape: int) -> None:
    assert isinstance(mask, str | tuple)
    case = AttentionCase("", mask=mask if isinstance(mask, str) else mask[: shape["batch"]], **shape)  # type: ignore[arg-type]
    if static:
        position = (case.past, case.past // 2, case.past // 3)[: case.batch]
        case = replace(case, slots=case.past + case.length + seed % 3, position=position)
    inputs = draw(case, seed)
    oracle = attention_oracle(case, inputs)
    got = run_body(attention.OPERATOR, options_of(case), inputs, case.attributes, library=plugin_library())
    reach = attention_table.in_reach(case)
    written = attention_table.written(case)[:, None]
    np.testing.assert_allclose(got["output"], oracle.output, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        np.where(written[..., None], got["present_key"], 0),
        np.where(written[..., None], oracle.key, 0),
        rtol=1e-5,
        atol=2e-5,
    )
    dt = np.where(written, oracle.dt, 0)[..., reach]
    np.testing.assert_allclose(np.where(written[..., reach], got["present_dt"], 0), dt, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["keep"], oracle.keep[..., reach])


@pytest.mark.parametrize("keys", range(9, 42))
def test_equal_keys_tie_in_every_lane(keys: int) -> None:
    case = AttentionCase("", past=keys - 1, heads=(4, 4), dt_bias=0.1, batch=2)
    inputs = draw(case, seed=keys)
    value, past_value = inputs["value"], inputs["past_value"]
    assert value is not None and past_value is not None
    inputs["past_value"] = value.reshape(2, 1, 4, 8).transpose(1, 2).expand_as(past_value).contiguous()
    library = plugin_library()
    keep = run_body(attention.OPERATOR, options_of(case), inputs, case.attributes, library=library)["keep"]
    assert (keep == (np.arange(keys) < case.window)).all()


@pytest.mark.parametrize("static", [False, True])
def test_outputs_at_the_end_can_be_left_out(static: bool) -> None:
    case = AttentionCase("", past=4, length=2)
    if static:
        case = replace(case, slots=9, position=(4,))
    inputs, options, library = draw(case), options_of(case), plugin_library()
    whole = run_body(attention.OPERATOR, options, inputs, case.attributes, library=library)
    for count in (3, 4):
        model = one_node_model(attention.OPERATOR, options, inputs, case.attributes, outputs=count)
        got = run_model(model, inputs, library=library)
        assert list(got) == list(attention.OPERATOR.output_names[:count])
        for name, array in got.items():
            np.testing.assert_array_equal(array, whole[name])


def test_stale_slots_say_nothing() -> None:
    case = AttentionCase("", length=2, slots=20, batch=2, position=(3, 9))
    outputs = []
    for garbage in (0.0, 1e4, -6e4, float("inf"), float("nan")):
        inputs = draw(case)
        stale = torch.from_numpy(~attention_table.written(case))
        for name in ("past_key", "past_value", "past_dt"):
            tensor = inputs[name]
            assert tensor is not None
            where = stale[:, None, :, None] if tensor.dim() == 4 else stale[:, None]
            inputs[name] = torch.where(where, garbage, tensor)
        got = run_body(
            attention.OPERATOR, options_of(case), inputs, case.attributes, library=plugin_library()
        )
        outputs.append(got["output"])
    for other in outputs[1:]:
        np.testing.assert_array_equal(outputs[0], other)


def check_routing(case: RoutingCase, seed: int = 0) -> None:
    logits = case.draw(seed)
    indices, weights = expert_routing(logits, *case.attributes.values())
    options = routing_table.options_of(case)
    inputs: dict[str, torch.Tensor | None] = {"router_logits": logits}
    got = run_body(routing.OPERATOR, options, inputs, case.attributes, library=plugin_library())
    np.testing.assert_array_equal(got["indices"], routing_oracle(case, logits)[0])
    np.testing.assert_array_equal(got["indices"], indices)
    tolerance = 2e-3 if case.dtype == torch.float16 else 1e-6
    np.testing.assert_allclose(got["weights"].astype(np.float32), weights.float(), rtol=tolerance, atol=1e-7)
    assert got["weights"].dtype == weights.numpy().dtype


@pytest.mark.parametrize("case", ROUTING_CASES, ids=lambda case: case.name)
def test_routing_is_the_twin(case: RoutingCase) -> None:
    check_routing(case)


@given(
    num_keys=st.integers(1, 40),
    k=st.integers(1, 64),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    per_token=st.booleans(),
    norm=st.booleans(),
    logits=st.sampled_from(["random", "integers", "equal"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_routing_on_random_cases(seed: int, num_keys: int, k: int, **others: object) -> None:
    check_routing(RoutingCase("", num_keys=num_keys, k=min(k, num_keys**2), **others), seed)  # type: ignore[arg-type]
