"""The parity table: exported graphs in plain onnxruntime against transformers, call by call."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens
from doge_export.weights import PRECISIONS

Export = Callable[..., tuple[Path, Any]]
WINDOW = 12

LENGTHS = [Schedule(f"prefill {n}", (n,)) for n in (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)]
DECODE = Schedule("decode", (WINDOW - 2, *[1] * (2 * WINDOW)))  # crosses 24, the dynamic rope's boundary
BATCH = Schedule("batch", (WINDOW + 3, *[1] * WINDOW), (0, 2, 5))
CHUNKS = Schedule("chunks", (5, WINDOW, 3, WINDOW, 1, 1), (0, 3))
TABLE = [*LENGTHS, DECODE, BATCH, CHUNKS]

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 2.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.3 * i for i in range(8)],
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
    },
}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"is_moe": True},
    "heads 8/1": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "heads 4/4, biases, untied": {
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "sliding window, gelu": {"sliding_window": 9, "hidden_act": "gelu"},
    "experts, normalised, not a square": {
        "is_moe": True,
        "norm_topk_prob": True,
        "num_experts": 70,
        "num_experts_per_tok": 20,
    },
    **{f"rope {name}": {"rope_parameters": rope} for name, rope in ROPES.items()},
}


def compare(
    checkpoint: Path,
    bundle: Any,
    schedules: list[Schedule],
    per_token: bool = False,
    precision: str = "fp32",
) -> Iterator[tuple[str, float, float]]:
    """(schedule, max abs diff over real positions, share of equal selections)."""
    reference = Reference(checkpoint, per_token=per_token, precision=PRECISIONS[precision])
    candidate = FunctionBodies(bundle)
    for seed, schedule in enumerate(schedules):
        tokens = draw_tokens(schedule, bundle.config.vocab_size, seed)
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        difference = np.abs(expected.logits - got.logits)[tokens.real].max()
        agreement = compare_selection(expected, got, tokens, schedule.steps).share
        yield schedule.name, float(difference), agreement


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_table(name: str, exported: Export) -> None:
    checkpoint, bundle = exported(**CONFIGURATIONS[name])
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


@pytest.mark.parametrize("moe", [False, True])
def test_static_cache(moe: bool, exported: Export) -> None:
    checkpoint, bundle = exported({"kv_cache": "static", "max_length": 40}, is_moe=moe, attention_bias=True)
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


def test_per_token_routing_is_the_reference_token_by_token(exported: Export) -> None:
    """The judge here is the untouched reference, fed one token at a time, batch 1."""
    checkpoint, bundle = exported({"routing": "per-token"}, is_moe=True)
    reference, candidate = Reference(checkpoint), FunctionBodies(bundle)
    length = 3 * WINDOW
    steps = Schedule("token by token", (1,) * length)
    tokens = draw_tokens(steps, 257, 5)
    expected = reference.run(steps, tokens).logits
    by_step = candidate.run(steps, tokens).logits
    assert np.abs(expected - by_step).max() <= 1e-4
    # A prefill beyond 24 has other dynamic rope frequencies than its first steps had.
    first = Tokens(
        *(array[:, :24] for array in (tokens.input_ids, tokens.attention_mask, tokens.position_ids))
    )
    at_once = candidate.run(Schedule("prefill", (24,)), first).logits
    assert np.abs(expected[:, :24] - at_once).max() <= 1e-4


def test_per_token_routing_in_batches_and_chunks(exported: Export) -> None:
    checkpoint, bundle = exported({"routing": "per-token"}, is_moe=True)
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE, per_token=True):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


def test_per_token_routing_leaks_no_future_and_no_neighbour(exported: Export) -> None:
    _, bundle = exported({"routing": "per-token"}, is_moe=True)
    candidate = FunctionBodies(bundle)
    both = Schedule("both", (20,), (0, 0))
    tokens = draw_tokens(both, 257, 1)
    before = candidate.run(both, tokens).logits
    single = Schedule("single", (20,))
    alone = draw_tokens(both, 257, 1)
    row = type(tokens)(alone.input_ids[:1], alone.attention_mask[:1], alone.position_ids[:1])
    assert np.abs(candidate.run(single, row).logits - before[:1]).max() <= 1e-5
    tokens.input_ids[0, -1] = (tokens.input_ids[0, -1] + 1) % 257
    after = candidate.run(both, tokens).logits
    assert np.abs(after[0, :-1] - before[0, :-1]).max() <= 1e-5
    assert np.abs(after[0, -1] - before[0, -1]).max() > 1e-3


def test_reference_routing_does_mix_tokens(exported: Export) -> None:
    """The contrast to the test above: what the reference does, the default graph does."""
    _, bundle = exported(is_moe=True)
    candidate, schedule = FunctionBodies(bundle), Schedule("prefill", (20,))
    tokens = draw_tokens(schedule, 257, 1)
    before = candidate.run(schedule, tokens).logits
    tokens.input_ids[0, -1] = (tokens.input_ids[0, -1] + 1) % 257
    after = candidate.run(schedule, tokens).logits
    assert np.abs(after[0, :-1] - before[0, :-1]).max() > 1e-3


def test_experts_that_add_nothing_give_the_dense_model(exported: Export, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from doge_export.export.pipeline import export_model

    checkpoint, dense = exported()
    moe_checkpoint, _ = exported(is_moe=True)
    made = tmp_path / "checkpoint"
    made.mkdir()
    experts = {
        name: torch.zeros_like(tensor) if "up_embed" in name else tensor
        for name, tensor in load_file(moe_checkpoint / "model.safetensors").items()
        if any(part in name for part in ("router_gate", "down_embed", "up_embed"))
    }
    save_file({**load_file(checkpoint / "model.safetensors"), **experts}, made / "model.safetensors")
    (made / "config.json").write_bytes((moe_checkpoint / "config.json").read_bytes())
    moe = export_model(str(made), tmp_path / "bundle", validate=False).bundle
    for schedule in TABLE:
        tokens = draw_tokens(schedule, 257, 3)
        first, second = FunctionBodies(dense).run(schedule, tokens), FunctionBodies(moe).run(schedule, tokens)
        assert np.abs(first.logits - second.logits)[tokens.real].max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoint_in_float32(dtype: str, exported: Export) -> None:
    checkpoint, bundle = exported(dtype=dtype)
    for schedule, difference, _ in compare(checkpoint, bundle, [LENGTHS[-1], BATCH]):
        assert difference <= 1e-4, (schedule, difference)


@pytest.mark.parametrize("precision", ["int8", "int4", "int8-head4"])
@pytest.mark.parametrize("name", ["experts", "heads 4/4, biases, untied"])
def test_rounded_weights(precision: str, name: str, exported: Export) -> None:
    """Against the reference with the same weights: ties included, since equal keys stay equal."""
    checkpoint, bundle = exported({"precision": precision}, **CONFIGURATIONS[name])
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE, precision=precision):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


@pytest.mark.parametrize("name", ["dense", "heads 4/4, biases, untied"])
def test_a_graph_that_is_not_lowered(name: str, exported: Export) -> None:
    checkpoint, bundle = exported({"target": "onnx"}, **CONFIGURATIONS[name])
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


@pytest.mark.parametrize("changes", [{}, {"is_moe": True}])
def test_float16_export(changes: dict[str, Any], exported: Export) -> None:
    """Below the window, where no near-tie decides; above it, validate compares distributions."""
    checkpoint, bundle = exported({"dtype": "float16"}, **changes)
    inside = [Schedule("prefill", (WINDOW,)), Schedule("decode", (4, *[1] * 8))]
    reference, candidate = Reference(checkpoint, "float16"), FunctionBodies(bundle)
    for schedule in inside:
        tokens = draw_tokens(schedule, 257, 0)
        expected, got = reference.run(schedule, tokens).logits, candidate.run(schedule, tokens).logits
        assert np.abs(expected - got).max() <= 2e-2 * expected.std()
