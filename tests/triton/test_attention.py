"""DynamicMaskAttention as a chain of Triton kernels, through the table that the C++ kernels go through."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.dynamic_mask_attention import OPERATOR
from tests.ops import test_dynamic_mask_attention as table
from tests.ops.cases import ATTENTION_CASES, AttentionCase, draw
from tests.ops.oracles import attention_oracle, visible_keys
from tests.triton._registry import build
from tests.triton._run import LIMITS, PLUGINS, TYPES, Ran, relative, run_operator, run_plugin


def selection(case: AttentionCase, ran: Ran, mask: torch.Tensor) -> npt.NDArray[np.bool_]:
    """[batch, kv_heads, sequence, slots]: which keys are kept, by the two numbers that say so."""
    dt = ran.inner["StoreKeys" if case.static else "AppendKeys"]["present_dt"]
    bits = dt.float().view(torch.int32)[:, :, None]
    threshold, last = (ran.inner["MaskThreshold"][name][..., None] for name in ("threshold", "last"))
    kept = (bits > threshold) | ((bits == threshold) & (torch.arange(case.total) <= last))
    visible = torch.zeros(case.batch, 1, case.length, case.total, dtype=torch.bool)
    for row in range(case.batch):
        for column in range(case.length):
            visible[row, 0, column, visible_keys(case, mask.numpy(), row, column)] = True
    return (kept & visible).numpy()


def check(case: AttentionCase, tactic: int = 2, seed: int = 0) -> Ran:
    inputs = draw(case, seed)
    options = BodyOptions(TYPES[case.dtype], static=case.static, sliding_window=case.sliding > 0)
    options = replace(options, opset=table.options_of(replace(case, dtype=torch.float32)).opset)
    ran = run_operator(OPERATOR, options, inputs, case.attributes, 4, tactic)
    stored = ran.inner["StoreKeys" if case.static else "AppendKeys"]["present_dt"]
    # In half precision two programs agree on dt to a bit, and it decides: what follows from it is judged.
    weights = None if case.dtype == torch.float32 else stored.double().numpy()
    oracle = attention_oracle(case, inputs, weights)
    limit, got = LIMITS[case.dtype], ran.outputs
    written = torch.from_numpy(table.written(case))[:, None]
    reach = table.in_reach(case)
    assert got["present_dt"].shape[2] == len(range(case.total)[reach])
    for name, wanted in (("output", oracle.output), ("present_key", oracle.key), ("present_dt", oracle.dt)):
        result = got[name]
        if name == "present_key":
            result, wanted = (
                torch.where(written[..., None], result, 0),
                np.where(written[..., None], wanted, 0),
            )
        elif name == "present_dt":
            result = torch.where(written[..., reach], result, 0)
            wanted = np.where(written, wanted, 0)[..., reach]
        ran.errors[name] = relative(result, wanted)
        assert ran.errors[name] < limit, name
        assert result.dtype == case.dtype
    value = torch.where(written[..., None], got["present_value"], 0)
    np.testing.assert_array_equal(value.double(), np.where(written[..., None], oracle.value, 0))
    mask = inputs["attention_mask"]
    assert mask is not None
    np.testing.assert_array_equal(selection(case, ran, mask), oracle.keep)
    return ran


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
def test_chain_is_the_oracle(case: AttentionCase) -> None:
    check(case)


HALF = [
    replace(case, name=f"{dtype}: {case.name}", dtype=dtype)
    for dtype in (torch.float16, torch.bfloat16)
    for case in ATTENTION_CASES[::8]
    if case.dtype == torch.float32
]


@pytest.mark.parametrize("case", HALF, ids=lambda case: case.name)
def test_chain_is_the_oracle_in_half_precision(case: AttentionCase) -> None:
    check(case)


#: More keys than a block of each kernel has, so that they are split, and thresholds searched block by block.
LONG = [
    AttentionCase("one token", past=300, window=100, heads=(2, 1), mask=(40,)),
    AttentionCase("ties", past=270, window=33, values="exact", heads=(2, 1)),
    AttentionCase("nothing but ties", past=270, window=33, A="zero", heads=(2, 1), length=2),
    AttentionCase("a few tokens", past=260, length=7, window=20, heads=(2, 1)),
    AttentionCase("sliding", past=290, window=20, sliding=170, heads=(2, 1)),
    AttentionCase("static", slots=280, position=(201,), length=5, window=64, heads=(2, 1), values="exact"),
    AttentionCase("a row of padding alone", past=200, batch=2, mask=(201, 3), window=50, heads=(2, 1)),
    AttentionCase("many tokens", past=20, length=66, window=20, heads=(2, 1)),
]


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_more_keys_than_a_block(case: AttentionCase) -> None:
    ran = check(case)
    stats = ran.inner["SplitAttention"]["stats"]
    written = (~stats[..., 0].isnan()).sum(-1)
    splits = min(max(64 // case.length, 1), -(-case.total // 64))
    assert (written == case.length * splits).all()
    assert splits > 1 or case.length > 64


@pytest.mark.parametrize("tactic", [1, 3])
@pytest.mark.parametrize("case", [*ATTENTION_CASES[8::27], LONG[1]], ids=lambda case: case.name)
def test_every_tactic_gives_the_same(case: AttentionCase, tactic: int) -> None:
    check(case, tactic)


def test_window_has_no_limit() -> None:
    """TensorRT's own TopK ends at 3840."""
    keys, window, rng = 4500, 4100, torch.Generator().manual_seed(0)
    dt = torch.rand(1, 1, keys, generator=rng)
    dt[0, 0, ::7] = dt.sort().values[0, 0, keys - window]  # the threshold itself, 643 times
    inputs = {
        "query": torch.zeros(1, 1, 2),
        "dt": dt,
        "key_positions": torch.ones(1, keys, dtype=torch.int64),
        "first": torch.tensor([keys - 1]),
    }
    attributes = {"keep_window_size": window, "sliding_window": 0, "bounded": 0}
    got = run_plugin("MaskThreshold", inputs, attributes, tactic=1)
    bits, slot = dt[0, 0].view(torch.int32), torch.arange(keys)
    kept = (bits > got["threshold"]) | ((bits == got["threshold"]) & (slot <= got["last"]))
    wanted = torch.argsort(dt[0, 0], descending=True, stable=True)[:window]
    assert set(kept[0, 0].nonzero()[:, 0].tolist()) == set(wanted.tolist())


def test_stale_slots_say_nothing() -> None:
    case = AttentionCase("", length=2, slots=20, batch=2, position=(3, 9))
    options = table.options_of(case)
    outputs = []
    for garbage in (0.0, float("inf"), float("nan")):
        inputs = draw(case)
        stale = torch.from_numpy(~table.written(case))
        for name in ("past_key", "past_value", "past_dt"):
            tensor = inputs[name]
            assert tensor is not None
            where = stale[:, None, :, None] if tensor.dim() == 4 else stale[:, None]
            inputs[name] = torch.where(where, garbage, tensor)
        outputs.append(run_operator(OPERATOR, options, inputs, case.attributes, 4).outputs["output"])
    for other in outputs[1:]:
        torch.testing.assert_close(outputs[0], other, rtol=0, atol=0)


@pytest.mark.parametrize("keys", [9, 16, 17, 31, 42])
def test_equal_keys_tie_wherever_they_stand(keys: int) -> None:
    case = AttentionCase("", past=keys - 1, heads=(4, 4), dt_bias=0.1, batch=2)
    inputs = draw(case, seed=keys)
    value, past_value, mask = inputs["value"], inputs["past_value"], inputs["attention_mask"]
    assert value is not None and past_value is not None and mask is not None
    inputs["past_value"] = value.reshape(2, 1, 4, 8).transpose(1, 2).expand_as(past_value).contiguous()
    ran = run_operator(OPERATOR, table.options_of(case), inputs, case.attributes, 4)
    assert (selection(case, ran, mask) == (np.arange(keys) < case.window)).all()


def test_partial_results_need_no_more_memory_for_fewer_tokens() -> None:
    """TensorRT plans memory by the largest shapes of a profile: an output must grow with its inputs."""
    plugin, sizes = PLUGINS["SplitAttention"], []
    attributes = {"num_heads": 4, "sliding_window": 0, "bounded": 0, "scale": 1.0, "epsilon": 1e-6}
    for length in (1, 2, 63, 64, 65, 200):
        case = AttentionCase("", past=300, length=length)
        inputs = {name: tensor for name, tensor in draw(case).items() if tensor is not None}
        keys = torch.zeros(1, 2, 300 + length, 8)
        row = torch.zeros(1, 2, length, dtype=torch.int32)
        inputs |= {"present_key": keys, "present_value": keys, "dt": keys[..., 0], "threshold": row}
        inputs |= {
            "last": row,
            "key_positions": torch.ones(1, 300 + length).long(),
            "first": torch.tensor([300]),
        }
        built = build(plugin, [inputs[name] for name in plugin.inputs], attributes, 1)
        sizes.append(built.outputs[0][0][2])
        assert built.grid[2] * length <= sizes[-1]
    assert sizes == sorted(sizes)
