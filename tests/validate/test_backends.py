"""The interface of what can be compared, what a check says it is of, and where torch comes in."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.progress import reporting
from doge_export.runtime import Session
from doge_export.validate import validate, validate_engine
from doge_export.validate.backends.base import Backend, BackendName, DecodeBackend, Shows
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.engine import EngineBackend
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels
from doge_export.validate.backends.reference import Reference
from doge_export.validate.limits import FIGURES, MULTI_STEP
from doge_export.validate.schedules import Schedule, draw_tokens

Export = Callable[..., tuple[Path, Any]]

#: What runs without torch may import, and what `quantize`, `sensitivity` and `pareto` measure with.
TORCH_FREE = (
    "doge_export.validate",
    "doge_export.validate.metrics",
    "doge_export.validate.comparison",
    "doge_export.validate.run",
    "doge_export.validate.schedules",
    "doge_export.validate.report",
    "doge_export.validate.limits",
    "doge_export.validate.backends.function_bodies",
    "doge_export.validate.backends.kernels",
    "doge_export.validate.backends.decode_graph",
    "doge_export.validate.backends.engine",
    "doge_export.validate.diagnosis.explain",
    "doge_export.compress.calibration.divergence",
    "doge_export.compress.calibration.inputs",
    "doge_export.compress.mixed_precision.probe",
)


def test_no_torch_before_a_reference_is_opened() -> None:
    code = (
        "import importlib, sys\n"
        f"for module in {TORCH_FREE}:\n"
        "    importlib.import_module(module)\n"
        "    if found := [name for name in ('torch', 'transformers') if name in sys.modules]:\n"
        "        sys.exit(f'{module} imports {found}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def opened(checkpoint: Path, bundle: Any) -> list[Backend]:
    kernels = Kernels(bundle)
    assert kernels.decode is not None
    return [
        Reference(checkpoint),
        FunctionBodies(bundle, trace=True),
        kernels,
        DecodeGraph(bundle),
        kernels.decode,
        EngineBackend(Session.open(bundle)),
    ]


def test_every_backend_shows_what_it_says(exported: Export) -> None:
    checkpoint, bundle = exported(is_moe=True)
    backends = opened(checkpoint, bundle)
    assert [backend.name for backend in backends] == list(BackendName), "one of each"
    schedule = Schedule("batch", (9, 1, 4), (0, 2))
    tokens = draw_tokens(schedule, bundle.config.vocab_size, 0)
    trace = {"0.key", "1.feed_forward"}
    real = schedule.compared(tokens)
    expected = backends[0].run(schedule, tokens)
    best = expected.logits.argmax(-1)[:, [8, 9, 13]]
    for backend in backends:
        run = backend.run(schedule, tokens, trace=trace)
        assert run.stopped is None
        assert (Shows.LOGITS in backend.shows) == bool(run.logits.size)
        assert (Shows.BEST in backend.shows) == (run.best is not None)
        assert (Shows.SELECTION in backend.shows) == any(map(len, run.keys)) == any(map(len, run.experts))
        assert (Shows.TRACE in backend.shows) == bool(run.trace)
        assert all(set(call) <= trace and "0.key" in call for call in run.trace)
        assert not backend.run(schedule, tokens).trace, "nothing that was not asked for"
        if run.logits.size:
            assert np.abs(run.logits - expected.logits)[real].max() <= 1e-4, backend.name
        if run.best is not None:
            assert (run.best.ids == best).all(), backend.name


def test_decode_backends_make_the_same_tokens_in_one_call(exported: Export) -> None:
    checkpoint, bundle = exported()
    schedule = Schedule("prompt", (7,))
    tokens = draw_tokens(schedule, bundle.config.vocab_size, 0)
    expected = Reference(checkpoint).greedy(tokens.input_ids, 4)[:, 7:]
    decodes = [each for each in opened(checkpoint, bundle) if isinstance(each, DecodeBackend)]
    assert len(decodes) == 2
    for decode in decodes:
        assert (decode.multi_step(schedule, tokens, 4).ids == expected).all(), decode.name


def test_a_check_says_what_it_is_of(exported: Export) -> None:
    """The fields alone are enough to tell checks apart; the name is made of them."""
    checkpoint, bundle = exported(is_moe=True)
    report = validate(bundle, checkpoint)
    suffixes = {name: ", kernels" if "native kernels" in name else "" for name in BackendName}
    of_schedules = [check for check in report.checks if check.metric in FIGURES]
    assert {check.backend for check in of_schedules} == set(BackendName) - {
        BackendName.REFERENCE,
        BackendName.ENGINE,
    }
    for check in of_schedules:
        assert check.backend is not None
        assert check.name == f"{check.schedule}{suffixes[check.backend]}: {FIGURES[check.metric]}"
    others = [check for check in report.checks if check.metric not in FIGURES]
    several = [check.backend for check in others if check.metric == MULTI_STEP]
    assert several == [BackendName.DECODE_GRAPH, BackendName.DECODE_KERNELS]
    assert all(check.backend is None for check in others if check.metric != MULTI_STEP)
    fields = [(check.backend, check.schedule, check.metric) for check in of_schedules]
    assert len(set(fields)) == len(fields)


def test_an_engine_is_held_to_the_graphs_limits(exported: Export) -> None:
    """Anything that the runtime opens is run as an engine is."""
    checkpoint, bundle = exported()
    told: list[str] = []
    progress = reporting(lambda schedules, name: told.append(name))
    report = validate_engine(bundle, checkpoint, progress=progress)
    assert report.passed and report.max_abs_diff <= 1e-4
    assert {check.backend for check in report.checks} == {BackendName.ENGINE}
    assert [check.schedule for check in report.checks] == told
    assert {check.metric for check in report.checks} == {"max_abs_diff"}
    assert report.greedy["agreed"] == report.greedy["new_tokens"] > 0
    assert any("an engine does not show" in sentence for sentence in report.omitted)
    tight = validate_engine(bundle, checkpoint, tolerance=1e-12)
    assert not tight.passed


@pytest.mark.parametrize("given", [{"rounding": "search"}, {"roundings": {"v_proj": "search"}}])
def test_an_engine_that_was_rounded_better_is_not_judged_by_other_weights(
    given: dict[str, Any], exported: Export
) -> None:
    checkpoint, bundle = exported({"precision": "int4", **given})
    with pytest.raises(DogeExportError, match="was learned from a text, and an engine does not show it"):
        validate_engine(bundle, checkpoint)
