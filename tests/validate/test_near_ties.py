"""Where rounding alone decides between two keys, the judge takes the other side's choice; nowhere else."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from doge_export.export.pipeline import export_model
from doge_export.render import report_lines
from doge_export.validate import validate
from doge_export.validate.backends.near_ties import NEAR, NearTies, best_experts
from doge_export.validate.backends.reference import Reference
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.validate.mutations import MUTATIONS, plant
from tests.validate.test_validate import tampered

Export = Callable[..., tuple[Path, Any]]
LOWEST = torch.finfo(torch.float32).min
WINDOW, LENGTH = 12, 24


def one_row(distance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask, dt, values and what is visible of one query that keeps keys 0 and 1 of five, sees four, and
    ranks key 2 `distance` behind key 1."""
    dt = torch.tensor([[[3.0, 1.5, 1.5 * (1 - distance), 1.0, 1.5]]])
    mask = torch.full((1, 1, 1, 5), LOWEST)
    mask[..., :2] = dt[:, :, None, :2]
    values = torch.arange(10.0).reshape(1, 5, 2)
    return mask, dt, values, torch.tensor([[[True, True, True, True, False]]])


def wanted(*places: int, count: int = 5) -> Any:
    found = np.zeros((1, 1, 1, count), bool)
    found[..., list(places)] = True
    return found


@pytest.mark.parametrize(
    ("distance", "places", "taken"),
    [
        (1.2e-7, (0, 2), True),
        (0.0, (0, 2), True),
        (1e-6, (0, 2), False),  # a choice
        (1.2e-7, (0, 3), False),  # another one
        (1.2e-7, (0, 4), False),  # a key that is not visible
        (1.2e-7, (0, 1, 2), False),  # another window
        (1.2e-7, (0,), False),
    ],
)
def test_one_row(distance: float, places: tuple[int, ...], taken: bool) -> None:
    ties = NearTies()
    given = one_row(distance)
    mask = ties.settle(*given, wanted(*places))
    assert (ties.rows, ties.widest <= NEAR) == (int(taken), True)
    kept = np.flatnonzero((mask > LOWEST).numpy()[0, 0, 0]).tolist()
    assert kept == (list(places) if taken else [0, 1])
    assert (mask[mask > LOWEST] == given[1][0][(mask > LOWEST)[:, 0, 0]]).all()
    assert (given[0] > LOWEST).sum() == 2, "the mask that was given stays"


def test_where_values_are_equal_the_tie_rule_holds() -> None:
    ties = NearTies()
    mask, dt, values, visible = one_row(0.0)
    values[0, 2] = values[0, 1]
    assert ties.settle(mask, dt, values, visible, wanted(0, 2)) is mask
    assert ties.rows == 0


@pytest.mark.parametrize(
    ("kept", "places", "taken"),
    [
        ((0, 2), (0, 1), True),  # the lower one, which the judge's rounding put behind
        ((0, 1), (0, 2), False),  # the higher one: against the rule
        ((0, 3), (0, 2), False),  # not the lowest of three
        ((0, 3), (0, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3), (1, 3), False),
    ],
)
def test_of_equal_values_the_lowest_are_taken(
    kept: tuple[int, ...], places: tuple[int, ...], taken: bool
) -> None:
    """Keys 1, 2 and 3 are of equal values, and each is a rounding from the others."""
    mask, dt, values, visible = one_row(0.0)
    values[0, 2:4] = values[0, 1]
    for place in (0, 1, 2, 3):
        dt[..., place] = 1.5 * (1 - 1.2e-7 * (place not in kept))
    mask[:] = LOWEST
    mask[..., list(kept)] = dt[:, :, None, list(kept)]
    ties = NearTies()
    found = ties.settle(mask, dt, values, visible, wanted(*places))
    assert ties.rows == int(taken) and (found is mask) == (not taken)
    assert np.flatnonzero((found > LOWEST).numpy()).tolist() == list(places if taken else kept)


def test_keys_that_one_side_has_forgotten() -> None:
    """As a sliding cache does: the last ones are compared, and none before may be wanted."""
    ties = NearTies()
    given = one_row(1.2e-7)
    more = np.concatenate((np.zeros((1, 1, 1, 3), bool), wanted(0, 2)), -1)
    ties.settle(*given, more)
    assert ties.rows == 1
    more[..., 0] = True
    ties.settle(*given, more)
    assert ties.rows == 1


def router(distance: float) -> torch.Tensor:
    """Logits [2, 1, 3]: of the experts 0 is the best (3), then 1 (2.75) and 3 (1.5 + 1), and 2 (2 + 0.5) is
    `distance` of the larger logit behind that; then 4 (2.25)."""
    return torch.tensor([[[2.0, 1.5, 1.0]], [[1.0, 0.75, 0.5 - 2 * distance]]])


@pytest.mark.parametrize(
    ("distance", "experts", "taken"),
    [
        (4e-7, (2, 0, 1), True),
        (1e-7, (0, 1, 2), True),
        (6e-7, (0, 1, 2), False),  # a choice
        (4e-7, (0, 1, 4), False),  # another one
        (4e-7, (0, 2, 3), False),  # two places
        (4e-7, (0, 2, 2), False),  # one of them twice
        (4e-7, (0, 1, 9), False),  # there is none of that number
    ],
)
def test_experts_of_one_token(distance: float, experts: tuple[int, ...], taken: bool) -> None:
    ties, logits = NearTies(), router(distance)
    chosen, scores = best_experts(logits, 3)
    assert chosen.tolist() == [[0, 1, 3]] and scores.shape == (1, 4)
    given = logits.clone()
    found = ties.settle_experts(logits, np.array([experts]), 3)
    assert (logits == given).all(), "what was given stays"
    assert ties.experts == int(taken) and ties.widest <= 2 * NEAR
    after = best_experts(found, 3)[0][0].tolist()
    assert sorted(after) == (sorted(experts) if taken else [0, 1, 3])
    assert (found - given).abs().max() <= 2 * NEAR * 2.0


def test_equal_scores_of_other_logits_are_settled() -> None:
    ties, logits = NearTies(), router(0.0)
    assert best_experts(logits, 3)[0].tolist() == [[0, 1, 2]]
    found = ties.settle_experts(logits, np.array([[0, 1, 3]]), 3)
    assert ties.experts == 1 and best_experts(found, 3)[0].tolist() == [[0, 1, 3]]


def test_where_router_logits_are_equal_the_tie_rule_holds() -> None:
    """Experts 1 and 2 have the same logits, as of equal rows of the router."""
    ties, logits = NearTies(), torch.tensor([[[2.0, 1.0, 1.0]], [[1.0, 0.5, 0.5]]])
    assert best_experts(logits, 2)[0].tolist() == [[0, 1]]
    assert ties.settle_experts(logits, np.array([[0, 2]]), 2) is logits and ties.experts == 0


def test_the_reference_follows_experts_within_rounding_only(exported: Export) -> None:
    """Of the first layer, and one token whose last expert is moved to a rounding before the next."""
    schedule = Schedule("prefill", (LENGTH,))
    tokens = draw_tokens(schedule, 257, 0)
    reference = Reference(exported(is_moe=True)[0], per_token=True)
    moe = reference.model.model.layers[0].mlp
    seen = list[torch.Tensor]()
    handle = moe.router_gate.register_forward_hook(lambda module, given, made: seen.append(made.clone()))
    reference.run(schedule, tokens)
    handle.remove()
    logits = seen[0].reshape(2, LENGTH, moe.num_keys)
    token = LENGTH - 1
    more = best_experts(logits, moe.top_k + 1)[0][token].tolist()
    last, after = (divmod(expert, moe.num_keys) for expert in more[-2:])
    half = int(last[0] == after[0])  # the half in which they differ
    first, second = (logits[0, token, x] + logits[1, token, y] for x, y in (last, after))
    nudge = torch.zeros_like(seen[0]).reshape(2, LENGTH, -1)
    nudge[half, token, after[half]] = first - second - 2e-7 * logits[:, token].abs().max()
    moe.router_gate.register_forward_hook(
        lambda module, given, made: (made.reshape(2, LENGTH, -1) + nudge).reshape(made.shape), prepend=True
    )
    run = reference.run(schedule, tokens)
    kept = run.experts[0][0][token].tolist()
    assert more[-2] in kept and more[-1] not in kept
    other = deepcopy(run)
    other.experts[0][0][token] = [more[-1] if each == more[-2] else each for each in kept]
    near = reference.run(schedule, tokens, follow=other)
    assert (near.settled.experts, near.settled.rows) == (1, 0) and 0 < near.settled.widest <= 2 * NEAR
    assert set(near.experts[0][0][token].tolist()) == set(other.experts[0][0][token].tolist())
    assert (near.logits[:, :-1] == run.logits[:, :-1]).all() and (near.logits != run.logits).any()
    other.experts[0][0][token] = [more[-1] if each == more[0] else each for each in kept]
    far = reference.run(schedule, tokens, follow=other)
    assert far.settled.experts == 0 and (far.logits == run.logits).all()


def twins(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with token n + 128 some roundings away from token n < 128."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    signs = torch.randint(0, 2, (128, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    table[128:256] = table[:128] * (1 + signs * 2.0**-22)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_other_keys(run: Run, layer: int, head: int, query: int, left: int, taken: int) -> Run:
    other = deepcopy(run)
    other.keys[0][layer][0, head, query, [left, taken]] = [False, True]
    return other


def test_the_reference_follows_within_rounding_only(exported: Export, tmp_path: Path) -> None:
    reference = Reference(twins(exported()[0], tmp_path / "twins"))
    schedule = Schedule("prefill", (LENGTH,))
    tokens = draw_tokens(schedule, 257, 0)
    tokens.input_ids[0] = np.arange(LENGTH) + 3  # no token twice
    order = np.argsort(-reference.run(schedule, tokens).weights[0][0][0, 0])
    last = order[WINDOW - 1]  # of layer 0, head 0, the last one kept in the last row
    tokens.input_ids[0, order[WINDOW]] = tokens.input_ids[0, last] + 128
    run = reference.run(schedule, tokens)
    kept, dt = run.keys[0][0][0, 0, -1], run.weights[0][0][0, 0]
    pair = [last, order[WINDOW]]
    (left,), (taken,) = ([place for place in pair if kept[place] == value] for value in (True, False))
    assert 0 <= dt[left] - dt[taken] <= NEAR * dt[left]

    near = reference.run(schedule, tokens, follow=with_other_keys(run, 0, 0, LENGTH - 1, left, taken))
    assert near.settled.rows == 1 and near.settled.widest <= NEAR
    assert near.keys[0][0][0, 0, -1, taken] and not near.keys[0][0][0, 0, -1, left]
    assert np.abs(near.logits[:, -1] - run.logits[:, -1]).max() > 1e-3
    assert (near.logits[:, :-1] == run.logits[:, :-1]).all()

    far = reference.run(schedule, tokens, follow=with_other_keys(run, 0, 0, LENGTH - 1, order[0], taken))
    assert far.settled.rows == 0 and (far.logits == run.logits).all()
    again = reference.run(schedule, tokens)
    assert again.settled.rows == 0 and (again.logits == run.logits).all()


def test_equal_tokens_are_not_followed(exported: Export) -> None:
    reference = Reference(exported()[0])
    schedule = Schedule("prefill", (LENGTH,))
    tokens = draw_tokens(schedule, 257, 0)
    tokens.input_ids[0] = np.arange(LENGTH) + 3
    order = np.argsort(-reference.run(schedule, tokens).weights[0][0][0, 0])
    tokens.input_ids[0, order[WINDOW]] = tokens.input_ids[0, order[WINDOW - 1]]
    run = reference.run(schedule, tokens)
    left, taken = sorted(order[WINDOW - 1 : WINDOW + 1])
    assert run.weights[0][0][0, 0, left] == run.weights[0][0][0, 0, taken]
    assert run.keys[0][0][0, 0, -1, left] and not run.keys[0][0][0, 0, -1, taken]
    followed = reference.run(schedule, tokens, follow=with_other_keys(run, 0, 0, LENGTH - 1, left, taken))
    assert followed.settled.rows == 0 and (followed.logits == run.logits).all()


def odd_heads(exported: Export) -> tuple[Path, Any]:
    """Three heads of ten numbers: rows of 120 bytes, which torch's own linear rounds by where they lie, so
    that copies of one token do not tie."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    shape = {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3, "keep_window_size": 16}
    return exported(rope_parameters=rope, **shape)


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_copies_of_a_token_in_odd_rows(exported: Export, seed: int) -> None:
    checkpoint, bundle = odd_heads(exported)
    report = validate(bundle, checkpoint, quick=True, seed=seed)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.tie_rows > 0 and report.settled_rows == 0


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_a_wrong_tie_rule_is_found_beside_them(exported: Export, tmp_path: Path, seed: int) -> None:
    """An error of the same size: of the same keys, the other one."""
    checkpoint, bundle = odd_heads(exported)
    (fault,) = (each for each in MUTATIONS if each.name == "ties to the higher position")
    report = validate(plant(fault, bundle, tmp_path / "mutant"), checkpoint, quick=True, seed=seed)
    assert not report.passed
    assert report.cause is not None and "of keys that tie" in report.cause


def swap_twins(model: onnx.ModelProto, folder: Path) -> None:
    table = next(each for each in model.graph.initializer if each.name == "model.embed_tokens.weight")
    rows = numpy_helper.to_array(table, str(folder)).copy()
    rows[:256] = np.concatenate((rows[128:256], rows[:128]))
    table.ClearField("external_data")
    table.CopyFrom(numpy_helper.from_array(rows, table.name))


def test_a_validation_settles_them_and_says_so(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle has each token's row where the checkpoint has its twin's: all logits agree to a rounding but
    where twins meet at the boundary."""
    checkpoint = twins(exported()[0], tmp_path / "twins")
    bundle = export_model(checkpoint, tmp_path / "bundle", validate=False).bundle
    other = tampered(bundle, tmp_path / "other", lambda model: swap_twins(model, bundle.path))
    report = validate(other, checkpoint, quick=True, seed=1)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert 0 < report.settled_rows < 0.05 * report.boundary_rows
    assert report.widest_settled <= NEAR
    assert report.to_dict()["ties"]["settled_rows"] == report.settled_rows
    assert any(f"in {report.settled_rows} rows rounding decides" in line for line in report_lines(report))
    monkeypatch.setattr("doge_export.validate.backends.near_ties.NEAR", -1.0)
    assert not validate(other, checkpoint, quick=True, seed=1).passed
