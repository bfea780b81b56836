"""The bounded cache against transformers, which keeps everything: many windows, chunks, padding, ties."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model, plan_export
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens
from tests.conftest import write_checkpoint
from tests.export.test_parity import CONFIGURATIONS, TABLE, WINDOW
from tests.export.test_ties import SCHEDULES, repeated

Export = Callable[..., tuple[Path, Any]]
BOUNDED = {"kv_cache": "bounded"}
LONG = Schedule("ten windows", (WINDOW - 2, *[1] * (10 * WINDOW)))
PIECES = Schedule("five windows in chunks", (7, WINDOW, 20, 1, 2, 5 * WINDOW - 42))
CONFIGS = {
    name: changes
    for name, changes in CONFIGURATIONS.items()
    if "sliding_window" not in changes and not changes.get("is_moe")
}


def check(checkpoint: Path, bundle: Any, schedules: list[Schedule], per_token: bool = False) -> None:
    """Plain onnxruntime: logits and the selected keys; the kernels: logits and the best tokens."""
    reference, candidate = Reference(checkpoint, per_token=per_token), FunctionBodies(bundle)
    kernels = Kernels(bundle) if bundle.manifest.options.target == "ort-cpu" else None
    for schedule in schedules:
        tokens, expected = _clear(reference, schedule, bundle.config.vocab_size)
        got = candidate.run(schedule, tokens)
        assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4, schedule.name
        assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0, schedule.name
        if kernels:
            logits = kernels.run(schedule, tokens).logits
            assert np.abs(expected.logits - logits)[tokens.real].max() <= 1e-4, schedule.name
            assert kernels.decode is not None
            best = kernels.decode.run(schedule, tokens).best
            ends = np.cumsum(schedule.steps) - 1
            assert best is not None
            assert np.abs(best.logits - expected.logits[:, ends].max(-1))[tokens.real[:, ends]].max() <= 1e-4


def _clear(reference: Reference, schedule: Schedule, vocab: int) -> tuple[Tokens, Run]:
    """Tokens, and what the reference makes of them, where no two keys at the boundary differ by rounding
    alone: sums over other keys of weight 0 are made in another order, and no two programs agree on such a
    pair."""
    for seed in range(100):
        tokens = draw_tokens(schedule, vocab, seed)
        run = reference.run(schedule, tokens)
        if run.ties.nearest > 1e-6:
            return tokens, run
    raise AssertionError(f"{schedule.name}: keys differ by rounding whatever is drawn")


@pytest.mark.parametrize("name", CONFIGS)
def test_table(name: str, exported: Export) -> None:
    checkpoint, bundle = exported(BOUNDED, **CONFIGS[name])
    check(checkpoint, bundle, [*TABLE, LONG, PIECES] if name == "dense" else TABLE)


def test_experts_of_their_own_tokens(exported: Export) -> None:
    checkpoint, bundle = exported({**BOUNDED, "routing": "per-token"}, is_moe=True)
    check(checkpoint, bundle, [*TABLE, PIECES], per_token=True)


def test_a_growing_export_decodes_with_it(exported: Export) -> None:
    checkpoint, bundle = exported()
    assert bundle.manifest.decode.cache.kind == "bounded" and bundle.manifest.cache.kind == "growing"
    check(checkpoint, bundle, [LONG, PIECES])
    assert exported(is_moe=True)[1].manifest.decode.cache.kind == "static"
    assert exported(sliding_window=9)[1].manifest.decode.cache.kind == "static"


@pytest.mark.parametrize("name", ["dense", "rope longrope", "rope yarn"])
def test_pieces_of_one_call_are_that_call(name: str, exported: Export) -> None:
    """Beyond the length where the rope turns otherwise, which each piece has to be told."""
    checkpoint, bundle = exported({**BOUNDED, "target": "onnx"}, **CONFIGS[name])
    whole = Schedule("one call", (5 * WINDOW,), (0, 4))
    pieces = Schedule("pieces", PIECES.steps, (0, 4))
    tokens = draw_tokens(whole, 257, 0)
    expected = Reference(checkpoint).run(whole, tokens).logits
    got = FunctionBodies(bundle).run(pieces, tokens, rope_length=5 * WINDOW).logits
    assert np.abs(expected - got)[tokens.real].max() <= 1e-4
    if "rope_parameters" not in CONFIGS[name] or name == "rope longrope":
        other = FunctionBodies(bundle).run(pieces, tokens).logits
        assert np.abs(expected - other)[tokens.real].max() > 1e-3, "the length matters"


@pytest.mark.parametrize("period", [1, 2, 7])
def test_repeated_tokens(period: int, exported: Export) -> None:
    """In the first layer; what ties in a later one does so by the rounding of the layer below it."""
    checkpoint, bundle = exported(BOUNDED, num_hidden_layers=1)
    _, growing = exported(num_hidden_layers=1)
    for schedule in [*SCHEDULES, LONG]:
        tokens = repeated(draw_tokens(schedule, 257, 0), period)
        expected, got = (
            Reference(checkpoint).run(schedule, tokens),
            FunctionBodies(bundle).run(schedule, tokens),
        )
        assert expected.ties.tied > 0
        assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0
        assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4
        same_selection(got, FunctionBodies(growing).run(schedule, tokens), tokens.real, schedule.steps)


def same_selection(got: Any, other: Any, real: Any, steps: tuple[int, ...]) -> None:
    """Every real token's keys, with both caches."""
    at = 0
    for count, mine, theirs in zip(steps, got.keys, other.keys, strict=True):
        rows = real[:, at : at + count]
        at += count
        for first, second in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(
                first.transpose(0, 2, 1, 3)[rows], second.transpose(0, 2, 1, 3)[rows]
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero", [True, False])
def test_the_same_keys_as_with_a_growing_cache(dtype: str, zero: bool, tmp_path: Path) -> None:
    """Exactly, also where all keys tie (A = 0), and where half of them do (bfloat16)."""
    from safetensors.torch import load_file, save_file

    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    if zero:
        tensors = load_file(checkpoint / "model.safetensors")
        for name, tensor in tensors.items():
            if name.endswith(".A"):
                tensor.zero_()
        save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    candidates = []
    for kind in ("growing", "bounded"):
        options = ExportOptions.resolve(kv_cache=kind, target="onnx", dtype=dtype)
        made = export_model(str(checkpoint), tmp_path / kind, options, validate=False).bundle
        candidates.append(FunctionBodies(made))
    for schedule in [*SCHEDULES, Schedule("three windows", (10, *[1] * 36))]:
        tokens = draw_tokens(schedule, 257, 1)
        growing, got = (candidate.run(schedule, tokens) for candidate in candidates)
        same_selection(got, growing, tokens.real, schedule.steps)
        limit = 1e-4 if dtype == "float32" else 0.05
        assert np.abs(growing.logits - got.logits)[tokens.real].max() <= limit


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sliding_window": 9}, "with sliding_window 9 keys leave by their age"),
        ({"is_moe": True}, "a text read in pieces is another text"),
    ],
)
def test_where_it_is_not_exact_it_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **changes)
    options = ExportOptions.resolve(kv_cache="bounded")
    for attempt in (plan_export, lambda *args: export_model(args[0], tmp_path / "bundle", args[1])):
        with pytest.raises(DogeExportError, match=f"bounded would not be exact: .*{sentence}"):
            attempt(str(checkpoint), options)
    assert not (tmp_path / "bundle").exists()
