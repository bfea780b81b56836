"""Every body of DynamicMaskAttention through one table: torch twin, ONNX function, slow oracle."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.dynamic_mask_attention import OPERATOR
from doge_export.model.operators.attention_parts import key_weights, select_keys
from doge_export.model.operators.dynamic_mask_attention import dynamic_mask_attention
from tests.ops.bodies import one_node_model, run_body, run_model
from tests.ops.cases import ATTENTION_CASES, AttentionCase, draw
from tests.ops.oracles import attention_oracle, visible_keys

Inputs = dict[str, torch.Tensor | None]
DTYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}
BODIES = {
    "branches, float64": (True, True),
    "no branches": (False, True),
    "no float64": (True, False),
    "neither": (False, False),
}
table = pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)


def options_of(case: AttentionCase, branches: bool = True, float64: bool = True) -> BodyOptions:
    return BodyOptions(
        dtype=DTYPES[case.dtype],
        opset=24 if case.static else 23,
        static=case.static,
        sliding_window=case.sliding > 0,
        branches=branches,
        float64=float64,
    )


def run_twin(case: AttentionCase, inputs: Inputs) -> dict[str, torch.Tensor]:
    before = {name: tensor.clone() for name, tensor in inputs.items() if tensor is not None}
    outputs = dynamic_mask_attention(*inputs.values(), *case.attributes.values())
    for name, tensor in before.items():
        assert torch.equal(tensor, inputs[name]), f"the operator wrote into {name}"
    return dict(zip(OPERATOR.output_names, outputs, strict=False))


def in_reach(case: AttentionCase) -> slice:
    """The slots that present_dt and keep are about."""
    return slice(max(0, case.past - case.sliding + 1) if case.sliding and not case.static else 0, case.total)


def written(case: AttentionCase) -> npt.NDArray[np.bool_]:
    """bool [batch, slots]: what lies beyond is stale."""
    ends = [at + case.length for at in case.position] if case.static else [case.total] * case.batch
    return np.arange(case.total) < np.array(ends)[:, None]


def sees_something(case: AttentionCase, inputs: Inputs) -> npt.NDArray[np.bool_]:
    """bool [batch, sequence]"""
    mask = inputs["attention_mask"]
    assert mask is not None
    rows = range(case.batch)
    return np.array(
        [[bool(visible_keys(case, mask.numpy(), row, i)) for i in range(case.length)] for row in rows]
    )


def twin_selection(case: AttentionCase, inputs: Inputs, dt: torch.Tensor) -> npt.NDArray[np.bool_]:
    """`select_keys` over the twin's own dt, of the keys that each query may see."""
    mask = inputs["attention_mask"]
    assert mask is not None
    visible = torch.zeros(case.batch, 1, case.length, case.total, dtype=torch.bool)
    for row in range(case.batch):
        for column in range(case.length):
            visible[row, 0, column, visible_keys(case, mask.numpy(), row, column)] = True
    visible = visible[..., in_reach(case)]
    ranked = torch.where(visible, dt[:, :, None], -1.0)
    return (select_keys(ranked, case.window) & visible).numpy()


@table
def test_twin_is_what_the_oracle_says(case: AttentionCase) -> None:
    inputs = draw(case)
    twin, oracle = run_twin(case, inputs), attention_oracle(case, inputs)
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    if case.dtype == torch.float16:
        tolerance = {"rtol": 4e-3, "atol": 4e-3}
    elif case.dt_bias == 21.0:
        tolerance["rtol"] = 1e-4
    np.testing.assert_allclose(twin["output"].float(), oracle.output, **tolerance)
    np.testing.assert_allclose(twin["present_key"].float(), oracle.key, **tolerance)
    np.testing.assert_array_equal(twin["present_value"].double(), oracle.value)
    reach = in_reach(case)
    np.testing.assert_allclose(twin["present_dt"].float(), oracle.dt[..., reach], **tolerance)
    if case.dtype == torch.float32:
        np.testing.assert_array_equal(
            twin_selection(case, inputs, twin["present_dt"]), oracle.keep[..., reach]
        )


@table
@pytest.mark.parametrize("body", ["branches, float64", "no branches"])
def test_function_body_is_the_twin(case: AttentionCase, body: str) -> None:
    compare(case, body)


@pytest.mark.parametrize("case", ATTENTION_CASES[::4], ids=lambda case: case.name)
@pytest.mark.parametrize("body", ["no float64", "neither"])
def test_function_body_without_float64_is_the_twin_but_for_ties(case: AttentionCase, body: str) -> None:
    if case.values == "exact" and case.A != "zero":
        pytest.skip("onnxruntime's Softplus rounds by lane: ties may break, as documented")
    compare(case, body)


def compare(case: AttentionCase, body: str) -> None:
    branches, float64 = BODIES[body]
    inputs = draw(case)
    twin = run_twin(case, inputs)
    got = run_body(OPERATOR, options_of(case, branches, float64), inputs, case.attributes)
    tolerance = 4e-3 if case.dtype == torch.float16 else 1e-5
    if case.dtype == torch.float16:
        # onnxruntime's CPU provider adds finfo.min in float32, so that a query that sees no key averages
        # with weights of its own. Nothing reads such a query's output but a layer of mixing experts.
        blind = ~sees_something(case, inputs)
        got["output"][blind] = 0
        twin["output"][torch.from_numpy(blind)] = 0
    for name, tensor in twin.items():
        assert got[name].shape == tuple(tensor.shape), name
        assert got[name].dtype == tensor.numpy().dtype
        np.testing.assert_allclose(
            got[name].astype(np.float32), tensor.float(), rtol=tolerance, atol=tolerance, err_msg=name
        )
    np.testing.assert_array_equal(got["present_value"], twin["present_value"].numpy())
    np.testing.assert_array_equal(got["keep"], twin_selection(case, inputs, twin["present_dt"]))


@pytest.mark.parametrize("optimised", [True, False])
def test_one_body_serves_every_length(optimised: bool) -> None:
    """The same file, with and without onnxruntime's optimiser, at lengths below and above its window."""
    base = AttentionCase("", values="exact")
    model = one_node_model(OPERATOR, options_of(base), draw(base), base.attributes, symbolic=True)
    for past, length in ((0, 1), (0, 9), (5, 2), (8, 1), (40, 1), (3, 30)):
        case = replace(base, past=past, length=length)
        inputs = draw(case, seed=past)
        twin = run_twin(case, inputs)
        got = run_model(model, inputs, optimised=optimised)
        np.testing.assert_allclose(got["output"], twin["output"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got["keep"], twin_selection(case, inputs, twin["present_dt"]))


@pytest.mark.parametrize("keys", range(9, 42))
def test_equal_keys_tie_in_every_lane(keys: int) -> None:
    """Values that are no round numbers, the same at every position: the first keys stay, at any length."""
    case = AttentionCase("", past=keys - 1, heads=(4, 4), dt_bias=0.1, batch=2)
    inputs = draw(case, seed=keys)
    value, past_value = inputs["value"], inputs["past_value"]
    assert value is not None and past_value is not None
    inputs["past_value"] = value.reshape(2, 1, 4, 8).transpose(1, 2).expand_as(past_value).contiguous()
    keep = run_body(OPERATOR, options_of(case), inputs, case.attributes)["keep"]
    assert (keep == (np.arange(keys) < case.window)).all()


@pytest.mark.parametrize("static", [False, True])
def test_outputs_at_the_end_can_be_left_out(static: bool) -> None:
    case = AttentionCase("", past=4, length=2)
    if static:
        case = replace(case, slots=9, position=(4,))
    inputs, options = draw(case), options_of(case)
    whole = run_body(OPERATOR, options, inputs, case.attributes)
    for count in (3, 4):  # present_dt and keep are the optional ones
        model = one_node_model(OPERATOR, options, inputs, case.attributes, outputs=count)
        got = run_model(model, inputs)
        assert list(got) == list(OPERATOR.output_names[:count])
        for name, array in got.items():
            np.testing.assert_array_equal(array, whole[name])


def test_a_static_cache_is_a_growing_one() -> None:
    """The same tokens through both, in calls of 5, 1, 6 and 1: equal outputs, equal keys and values."""
    torch.manual_seed(0)
    grown = AttentionCase("", past=0, length=13, batch=2, mask=(0, 3), values="exact")
    inputs = draw(grown)
    fixed = replace(grown, slots=16, position=(0, 0))
    growing, static = (
        dict(inputs),
        {**inputs, **{n: draw(fixed)[n] for n in ("past_key", "past_value", "past_dt")}},
    )
    mask = inputs["attention_mask"]
    assert mask is not None
    at = 0
    for count in (5, 1, 6, 1):
        part = slice(at, at + count)
        for name in ("query", "key", "value", "cos", "sin"):
            growing[name] = static[name] = inputs[name][:, part]  # type: ignore[index]
        growing["attention_mask"] = mask[:, : at + count]
        static["attention_mask"] = torch.nn.functional.pad(
            mask[:, : at + count], (0, 3 + 13 - at - count), value=1
        )
        static["cache_position"] = torch.tensor([at, at])
        first = run_twin(grown, growing)
        second = run_twin(fixed, static)
        torch.testing.assert_close(first["output"], second["output"], rtol=1e-6, atol=1e-6)
        growing["past_key"], growing["past_value"] = first["present_key"], first["present_value"]
        for name in ("key", "value", "dt"):
            static[f"past_{name}"] = second[f"present_{name}"]
            torch.testing.assert_close(
                first[f"present_{name}"], second[f"present_{name}"][:, :, : at + count], rtol=1e-6, atol=1e-6
            )
        at += count


def test_present_dt_of_the_last_call_is_the_dt_of_all_values() -> None:
    case = AttentionCase("", past=9, length=3, dt_bias=0.5, batch=2)
    inputs = draw(case)
    twin = run_twin(case, inputs)
    dt_weight, A = inputs["dt_weight"], inputs["A"]
    assert dt_weight is not None and A is not None
    expected = key_weights(twin["present_value"], dt_weight, inputs["dt_bias"], A)
    torch.testing.assert_close(twin["present_dt"], expected)


@given(
    past=st.integers(0, 9),
    length=st.integers(1, 7),
    batch=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    window=st.integers(1, 9),
    sliding=st.integers(0, 9),
    mask=st.one_of(st.just("holes"), st.tuples(st.integers(0, 16), st.integers(0, 16))),
    static=st.booleans(),
    values=st.sampled_from(["random", "exact", "equal"]),
    A=st.sampled_from(["random", "zero", "negative"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=120)
def test_twin_is_the_oracle_on_random_cases(seed: int, static: bool, mask: Any, **shape: Any) -> None:
    case = AttentionCase("", head_dim=4, mask=mask if mask == "holes" else mask[: shape["batch"]], **shape)
    if static:
        position = (case.past, case.past // 2)[: case.batch]
        case = replace(case, slots=case.past + case.length + seed % 3, position=position)
    inputs = draw(case, seed)
    twin, oracle = run_twin(case, inputs), attention_oracle(case, inputs)
    selection = twin_selection(case, inputs, twin["present_dt"])
    np.testing.assert_array_equal(selection, oracle.keep[..., in_reach(case)])
    np.testing.assert_allclose(twin["output"], oracle.output, rtol=1e-4, atol=1e-5)


@given(
    entries=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40),
    window=st.integers(1, 45),
)
def test_select_keys_takes_the_lower_position(entries: list[float], window: int) -> None:
    order = sorted(range(len(entries)), key=lambda place: (-entries[place], place))[:window]
    chosen = select_keys(torch.tensor(entries), window)
    assert chosen.tolist() == [place in order for place in range(len(entries))]


def test_stale_slots_say_nothing() -> None:
    """Whatever lies in slots that are not written yet, finite or not, the new tokens are the same."""
    case = AttentionCase("", length=2, slots=20, batch=2, position=(3, 9))
    inputs = draw(case)
    outputs = []
    for garbage in (0.0, 1e4, -6e4):
        other = dict(inputs)
        stale = torch.from_numpy(~written(case))
        for name in ("past_key", "past_value", "past_dt"):
            tensor = other[name]
            assert tensor is not None
            where = stale[:, None, :, None] if tensor.dim() == 4 else stale[:, None]
            other[name] = torch.where(where, garbage, tensor)
        outputs.append(run_twin(case, other)["output"].numpy())
        body = run_body(OPERATOR, options_of(case), other, case.attributes)
        np.testing.assert_allclose(body["output"], outputs[-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
