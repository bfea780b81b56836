"""Every planted fault makes `validate` miss, and the sentence names the place; untouched exports pass."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.validate import validate
from doge_export.validate.backends.reference import Reference
from doge_export.validate.diagnosis.drift import bisect
from doge_export.validate.diagnosis.locate import locate_graph
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.validate.mutations import MUTATIONS, Mutation, plant

Export = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_is_found_and_named(mutation: Mutation, exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported(mutation.options, **mutation.config)
    report = validate(plant(mutation, bundle, tmp_path / "mutant"), checkpoint)
    assert not report.passed
    assert report.cause is not None and re.search(mutation.cause, report.cause), report.cause


@pytest.mark.parametrize("seed", [3, 4])
def test_untouched_exports_pass(seed: int, exported: Export) -> None:
    checkpoint, bundle = exported(seed=seed, is_moe=bool(seed % 2))
    report = validate(bundle, checkpoint, seed=seed)
    assert report.passed and report.cause is None
    assert max(report.drift["parts"].values()) < report.drift["limit"] / 5, "the limit has room"


def test_layers_are_found_by_bisection_where_memory_is_short(exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported(num_hidden_layers=5)
    (fault,) = (mutation for mutation in MUTATIONS if mutation.name == "gate and up swapped")
    wrong = plant(fault, bundle, tmp_path / "mutant")
    schedule = Schedule("prefill 9", (9,))
    call = (schedule, draw_tokens(schedule, bundle.config.vocab_size, 0))
    whole, all_parts = locate_graph(wrong, Reference(checkpoint), call)
    sentence, parts = locate_graph(wrong, Reference(checkpoint), call, budget=0)
    assert sentence == whole and sentence.startswith("layer 1, feed forward")
    assert {part.split(".")[0] for part in parts if part.endswith("feed_forward")} == {"1"}
    assert len(all_parts) > len(parts)


@pytest.mark.parametrize("first", range(8))
def test_bisection(first: int) -> None:
    asked: list[int] = []

    def departs(layer: int) -> bool:
        asked.append(layer)
        return layer >= first

    assert bisect(departs, 7) == first
    assert len(asked) <= 3


def test_a_quick_validation_names_the_place_too(exported: Export, tmp_path: Path) -> None:
    (fault,) = (mutation for mutation in MUTATIONS if mutation.name == "o_proj transposed")
    checkpoint, bundle = exported()
    report = validate(plant(fault, bundle, tmp_path / "mutant"), checkpoint, quick=True)
    assert report.cause is not None and report.cause.startswith("layer 1, attention")
    right = validate(bundle, checkpoint, quick=True)
    assert right.cause is None and not right.drift and not right.reference, "nothing beside the schedules"
