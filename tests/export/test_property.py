"""Configurations and schedules drawn at random, all held to the parity table."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.limits import MOST_SETTLED
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.conftest import write_checkpoint
from tests.export.test_parity import ROPES

SHAPES = st.sampled_from([(4, 2), (8, 1), (4, 4), (2, 1), (6, 3)])


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    heads, kv_heads = draw(SHAPES)
    is_moe = draw(st.booleans())
    limit = draw(st.sampled_from([16, 24, 40]))
    ropes = [None, *(rope for name, rope in ROPES.items() if name != "longrope")]
    changes: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * draw(st.sampled_from([8, 16])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "keep_window_size": draw(st.integers(1, 24)),
        "max_position_embeddings": limit,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "gelu_new", "relu"])),
        "is_moe": is_moe,
        "num_experts": draw(st.sampled_from([16, 64, 70])),
        "num_experts_per_tok": draw(st.integers(1, 12)),
        "norm_topk_prob": draw(st.booleans()),
        "sliding_window": None if is_moe else draw(st.sampled_from([None, None, 2, 9])),
    }
    rope = draw(st.sampled_from(ropes))
    return changes if rope is None else {**changes, "rope_parameters": rope}


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, 7, 13, 20]), min_size=1, max_size=12))
    padding = draw(st.sampled_from([(0,), (0, 3), (2, 0, 5)]))
    return Schedule("drawn", (max(padding) + steps[0], *steps[1:]), padding)


@settings(max_examples=18, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=configurations(),
    drawn=st.lists(schedules(), min_size=4, max_size=4),
    kind=st.sampled_from(["growing", "static", "bounded"]),
    per_token=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_configuration_on_any_schedule(
    changes: dict[str, Any], drawn: list[Schedule], kind: str, per_token: bool, seed: int
) -> None:
    longest = max(schedule.length for schedule in drawn)
    if kind == "bounded":  # where it is exact
        changes["sliding_window"], per_token = None, per_token or changes["is_moe"]
    options = ExportOptions.resolve(
        kv_cache=kind,
        max_length=longest if kind == "static" else None,
        routing="per-token" if per_token else "reference",
    )
    with tempfile.TemporaryDirectory() as name:
        checkpoint = write_checkpoint(Path(name) / "checkpoint", seed, **changes)
        bundle = export_model(str(checkpoint), Path(name) / "bundle", options, validate=False).bundle
        reference, candidate = Reference(checkpoint, per_token=per_token), FunctionBodies(bundle)
        for schedule in drawn:
            tokens = draw_tokens(schedule, bundle.config.vocab_size, seed)
            expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
            if compare_selection(expected, got, tokens, schedule.steps).share < 1:
                expected = reference.run(schedule, tokens, follow=got)  # where rounding alone decides
                settled = expected.settled.rows + expected.settled.experts
                assert 0 < settled <= max(1, MOST_SETTLED * tokens.real.sum())
            assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4
            assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0
