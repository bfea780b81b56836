"""The knapsack against every combination; budgets kept; what was measured is not measured again."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from doge_export.compress.mixed_precision import Budget, choose, compressed
from doge_export.compress.mixed_precision.costs import Option
from doge_export.core.errors import DogeExportError
from doge_export.core.journal import Journal
from doge_export.core.progress import reporting
from doge_export.weights import FULL, PRECISIONS, Formats, WeightFormat, stored_bytes
from tests._precision import form

NAMES = tuple(
    f"model.layers.{layer}.self_attn.{role}.weight" for layer in (0, 1) for role in ("q_proj", "v_proj")
)
INT4, INT8 = form("int4"), form("int8")
KINDS = (INT4, INT8, FULL)


class Additive:
    """A study whose KL is the sum of what each matrix costs, by itself."""

    tied = True
    scalings: tuple[WeightFormat | None, ...] = (None,)

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.shapes = {name: (int(rng.integers(1, 9)) * 8, 64) for name in NAMES} | {
            "model.norm.weight": (64,)
        }
        self.costs: dict[str, list[Option]] = {}
        for name in NAMES:
            base = float(rng.uniform(0, 1))
            costs = (base, base * float(rng.uniform(0, 0.5)), 0.0)
            self.costs[name] = [
                Option(kind, self.bytes({name: kind}, only=True), cost)
                for kind, cost in zip(KINDS, costs, strict=True)
            ]

    def bytes(self, types: Formats, only: bool = False) -> int:
        shapes = {name: self.shapes[name] for name in types} if only else self.shapes
        return stored_bytes(shapes, PRECISIONS["fp32"].with_types(types), True, 4)

    def fits(self, name: str, form: WeightFormat) -> bool:
        return form in KINDS

    def effect(self, types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Any:
        assert set(types) == set(NAMES)
        options = {(name, each.form): each.cost for name, found in self.costs.items() for each in found}
        total = sum(options[name, form] for name, form in types.items())
        return SimpleNamespace(kl_divergence=total, typical_kl=total)


@pytest.mark.parametrize("seed", range(5))
def test_no_combination_is_better(seed: int) -> None:
    study: Any = Additive(seed)
    every = [dict(zip(NAMES, kinds, strict=True)) for kinds in itertools.product(KINDS, repeat=len(NAMES))]
    sizes = sorted({study.bytes(types) for types in every})
    for budget in sizes[:: max(1, len(sizes) // 12)]:
        found = choose(study, study.costs, Budget(max_bytes=budget))
        assert found.bytes == study.bytes(found.types) <= budget
        fitting = [study.effect(types).kl_divergence for types in every if study.bytes(types) <= budget]
        assert found.effect.kl_divergence == pytest.approx(min(fitting))
    for kl in (0.01, 0.1, 0.5):
        found = choose(study, study.costs, Budget(max_kl=kl))
        assert found.effect.kl_divergence <= kl
        least = min(study.bytes(types) for types in every if study.effect(types).kl_divergence <= kl)
        assert found.bytes <= least + study.bytes({}) // 1000
    with pytest.raises(DogeExportError, match="No mixture of types is that small"):
        choose(study, study.costs, Budget(max_bytes=sizes[0] - 1))


def test_the_smallest_whose_agreement_is_surely_enough() -> None:
    """The bound is kept by the agreement less its standard error, not by the agreement alone."""
    study: Any = Additive(2)
    plain = study.effect

    def effect(error: float | None) -> Any:
        def found(types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Any:
            kl = plain(types).kl_divergence
            return SimpleNamespace(
                kl_divergence=kl, typical_kl=kl, top1_agreement=1 - kl / 10, top1_error=error and kl * error
            )

        return found

    sizes = {}
    for error in (0.0, 0.1):
        study.effect = effect(error)
        found = choose(study, study.costs, Budget(min_top1=0.95)).effect
        assert found.top1_agreement - found.top1_error >= 0.95
        same = choose(study, study.costs, Budget(max_kl=0.5 / (1 + 10 * error)))
        sizes[error] = choose(study, study.costs, Budget(min_top1=0.95)).bytes
        assert sizes[error] == same.bytes, "10 / (1 + 10 error) times the KL"
    assert sizes[0.0] < sizes[0.1]
    study.effect = effect(None)
    with pytest.raises(DogeExportError, match="one window to search by"):
        choose(study, study.costs, Budget(min_top1=0.95))


def test_neighbours_mend_a_wrong_estimate() -> None:
    """Costs that take v_proj for harmless: what is measured says otherwise, and is listened to."""
    study: Any = Additive(1)
    wrong = {
        name: [replace(each, cost=each.cost * (0.2 if "v_proj" in name else 1)) for each in options]
        for name, options in study.costs.items()
    }
    smallest, larger = (study.bytes(dict.fromkeys(NAMES, kind)) for kind in (INT4, INT8))
    budget = int(0.3 * smallest + 0.7 * larger)
    told: list[int] = []
    before, best = (choose(study, costs, Budget(max_bytes=budget)) for costs in (wrong, study.costs))
    progress = reporting(lambda done, stage: told.append(done))
    after = choose(study, wrong, Budget(max_bytes=budget), neighbours=20, progress=progress)
    assert sum(told) == 20 and after.bytes <= budget
    assert best.effect.typical_kl <= after.effect.typical_kl < before.effect.typical_kl


def test_a_mixture_has_to_be_better_by_both_measures() -> None:
    """A few tokens make the mean: a mixture that is better but for them is not taken for a single type."""
    study: Any = Additive(2)
    budget = (3 * study.bytes(dict.fromkeys(NAMES, INT8)) + study.bytes({})) // 4
    plain = study.effect

    def effect(types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Any:
        found = plain(types)
        mixed = len(set(types.values())) > 1
        return SimpleNamespace(kl_divergence=found.kl_divergence + mixed, typical_kl=found.typical_kl - mixed)

    assert len(set(choose(study, study.costs, Budget(max_bytes=budget)).types.values())) > 1
    study.effect = effect
    found = choose(study, study.costs, Budget(max_bytes=budget), neighbours=10)
    assert found.types == dict.fromkeys(NAMES, INT8)


def test_neighbours_are_measured_whole_where_a_few_windows_speak_for_them() -> None:
    """The costs are right, so that the first mixture is the best."""
    study: Any = Additive(1)
    plain, asked = study.effect, list[bool]()

    def effect(types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Any:
        asked.append(few)
        return plain(types)

    study.effect = effect
    budget = study.bytes(dict.fromkeys(NAMES, INT8))
    choose(study, study.costs, Budget(max_bytes=budget))
    assert not any(asked)
    first = len(asked)
    choose(study, study.costs, Budget(max_bytes=budget), neighbours=20)
    more = asked[2 * first :]
    assert more.count(True) == 40 and more.count(False) == 0, "no neighbour is better"


def test_scales_are_taken_where_they_lose_less() -> None:
    study: Any = Additive(3)
    plain, study.scalings = study.effect, (None, INT8, INT4)
    budget = study.bytes(dict.fromkeys(NAMES, INT8))

    def effect(types: Formats, scaling: WeightFormat | None = None, few: bool = False) -> Any:
        factor = {None: 1.0, INT8: 0.9, INT4: 1.1}[scaling]
        total = plain(types).typical_kl * factor
        return SimpleNamespace(kl_divergence=total, typical_kl=total)

    without = choose(study, study.costs, Budget(max_bytes=budget))
    assert without.scaling is None  # where it tells nothing
    study.effect = effect
    assert choose(study, study.costs, Budget(max_bytes=budget), neighbours=3).scaling == INT8
    found = choose(study, study.costs, Budget(max_kl=0.89 * without.effect.kl_divergence + 1e-9))
    assert found.effect.kl_divergence <= 0.89 * without.effect.kl_divergence + 1e-9


def test_types_are_said_shortly() -> None:
    types = {name: INT8 for name in NAMES} | {NAMES[0]: INT4, "model.embed_tokens.weight": INT4}
    short = compressed(types)
    assert short == {"q_proj": INT4, "layers.1.q_proj": INT8, "v_proj": INT8, "embed_tokens": INT4}


def test_a_journal_goes_on_and_forgets_strangers(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, {"text": 1})
    first.put("a", {"kl": 0.5})
    first.put("b", [1])
    path.write_text(path.read_text() + '{"c": [1,')  # cut off
    again = Journal(path, {"text": 1})
    assert (again.get("a"), again.get("b"), again.get("c")) == ({"kl": 0.5}, [1], None)
    again.put("c", 3)
    assert Journal(path, {"text": 1}).get("c") == 3
    assert Journal(path, {"text": 2}).get("a") is None
    again.done()
    assert not path.exists()
