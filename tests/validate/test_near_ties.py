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

from doge_export.pipeline import export_model
from doge_export.render import report_lines
from doge_export.validate import validate
from doge_export.validate.near_ties import NEAR, NearTies
from doge_export.validate.reference import Reference, Run
from doge_export.validate.schedules import Schedule, draw_tokens
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
    monkeypatch.setattr("doge_export.validate.near_ties.NEAR", -1.0)
    assert not validate(other, checkpoint, quick=True, seed=1).passed
