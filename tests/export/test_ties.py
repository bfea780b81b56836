"""Where keys tie, the one rule: the lower position stays. The reference here has a stable topk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens

Export = Callable[..., tuple[Path, Any]]
SCHEDULES = [
    Schedule("prefill", (40,)),
    Schedule("decode", (10, *[1] * 30)),
    Schedule("batch", (15, *[1] * 12), (0, 2, 5)),
    Schedule("chunks", (5, 12, 3, 12, 1, 1), (0, 3)),
]


def repeated(tokens: Tokens, period: int) -> Tokens:
    """The same positions, with ids that come again every `period` tokens."""
    length = tokens.input_ids.shape[1]
    ids = np.broadcast_to(3 + np.arange(length) % period, tokens.input_ids.shape).copy()
    return Tokens(ids, tokens.attention_mask, tokens.position_ids)


@pytest.mark.parametrize("kv_cache", ["growing", "static"])
@pytest.mark.parametrize("period", [1, 2, 7])
def test_repeated_tokens(kv_cache: str, period: int, exported: Export) -> None:
    options = {"kv_cache": kv_cache, **({"max_length": 48} if kv_cache == "static" else {})}
    # With one or two tokens the kept keys soon have one value between them, and the next layer ties but
    # for the rounding of a softmax: one layer shows the rule.
    checkpoint, bundle = exported(options, num_hidden_layers=1 if period < 7 else 2)
    reference, candidate = Reference(checkpoint), FunctionBodies(bundle)
    for schedule in SCHEDULES:
        tokens = repeated(draw_tokens(schedule, 257, 0), period)
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        assert expected.ties.tied > 0
        assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0
        assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4


def test_all_keys_tie_where_A_is_zero(exported: Export, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from doge_export.export.pipeline import export_model

    checkpoint, _ = exported()
    made = tmp_path / "checkpoint"
    made.mkdir()
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: torch.zeros_like(t) if name.endswith(".A") else t for name, t in tensors.items()},
        made / "model.safetensors",
    )
    (made / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    bundle = export_model(str(made), tmp_path / "bundle", validate=False).bundle
    reference, candidate = Reference(made), FunctionBodies(bundle)
    for schedule in SCHEDULES:
        tokens = draw_tokens(schedule, 257, 0)
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        assert expected.ties.tied == expected.ties.rows > 0
        assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0
        assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4
        if schedule.name == "prefill":  # every row keeps its first twelve keys
            (first, *_) = got.keys[0]
            assert first[0, 0, -1].tolist() == [True] * 12 + [False] * 28
