"""Per-token routing, and experts put on top of a dense model."""

import pytest
import torch

from tests.model._reference import Calls, calls, make_pair

STEPS = calls([1] * 22, seed=7)  # short of the dynamic rope's boundary, where a prefill is another thing


@pytest.mark.parametrize(
    "changes", [{}, {"norm_topk_prob": True, "num_experts": 70, "num_experts_per_tok": 20}]
)
def test_per_token_routing_is_the_reference_token_by_token(changes: dict[str, object]) -> None:
    pair = make_pair(routing="per-token", is_moe=True, **changes)
    expected = pair.run_reference(STEPS)
    for steps in ((1,) * 22, (22,), (5, 9, 8)):
        again = Calls(steps, STEPS.ids, STEPS.mask, STEPS.positions)
        assert (pair.run_ours(again) - expected).abs().max() <= 2e-5
    static = pair.with_cache("static", "per-token")
    again = Calls((13, 1, 8), STEPS.ids, STEPS.mask, STEPS.positions)
    assert (static.run_ours(again, 30) - expected).abs().max() <= 2e-5


def test_reference_routing_is_the_same_for_single_tokens_only() -> None:
    pair = make_pair(is_moe=True)
    other = pair.with_cache("growing", "per-token")
    assert torch.equal(pair.run_ours(STEPS), other.run_ours(STEPS))
    prefill = Calls((22,), STEPS.ids, STEPS.mask, STEPS.positions)
    assert (pair.run_ours(prefill) - other.run_ours(prefill)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["dense", "per-token", "reference"])
def test_future_tokens(kind: str) -> None:
    """They change nothing before them; in the reference's routing they do, which is the contrast."""
    pair = make_pair(is_moe=kind != "dense", routing="per-token" if kind == "per-token" else "reference")
    call = calls((20,), seed=1)
    before = pair.run_ours(call)
    for column in (19, 11):
        ids = call.ids.clone()
        ids[0, column] = (ids[0, column] + 7) % 257
        after = pair.run_ours(Calls(call.steps, ids, call.mask, call.positions))
        leak = (after - before)[:, :column].abs().max()
        assert leak > 1e-3 if kind == "reference" else leak <= 1e-5
        assert (after - before)[:, column].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["dense", "per-token", "reference"])
def test_a_batch_and_its_rows(kind: str) -> None:
    pair = make_pair(is_moe=kind != "dense", routing="per-token" if kind == "per-token" else "reference")
    call = calls((14, 1, 1, 4), (0, 0, 0), seed=2)
    together = pair.run_ours(call)
    apart = max(
        float((pair.run_ours(call.rows(slice(row, row + 1)))[0] - together[row]).abs().max())
        for row in range(3)
    )
    assert apart > 1e-3 if kind == "reference" else apart <= 2e-5


@pytest.mark.parametrize("kind", ["dense", "per-token"])
def test_a_padded_row_is_the_row_without_padding(kind: str) -> None:
    pair = make_pair(is_moe=kind == "per-token", routing="per-token")
    call = calls((14, 1, 1), (5, 0), seed=3)
    padded = pair.run_ours(call)[0, 5:]
    alone = Calls((9, 1, 1), call.ids[:1, 5:], call.mask[:1, 5:], call.positions[:1, 5:])
    assert (pair.run_ours(alone)[0] - padded).abs().max() <= 2e-5


@pytest.mark.parametrize("routing", ["reference", "per-token"])
@pytest.mark.parametrize("mlp_bias", [False, True])
def test_experts_that_add_nothing_give_the_dense_model(routing: str, mlp_bias: bool) -> None:
    dense = make_pair(mlp_bias=mlp_bias)
    experts = make_pair(is_moe=True, routing=routing, mlp_bias=mlp_bias, seed=1)
    state = dict(dense.ours.state_dict())
    for name, tensor in experts.ours.state_dict().items():
        if name not in state:
            state[name] = torch.zeros_like(tensor) if "up_embed" in name else tensor
    experts.ours.load_state_dict(state)
    for call in (calls((36,)), calls((11, *[1] * 5), (0, 4))):
        assert (dense.run_ours(call) - experts.run_ours(call)).abs().max() <= 1e-5
