"""Doge2, which is generation 4 under another name: its class's defaults, exports and certificates, what
convert makes of it, and the states of its first weeks."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.cli import main
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.export.convert import convert
from doge_export.model import load_model
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.conftest import write_checkpoint
from tests.generations._checkpoints import change_config, change_tensors

#: What transformers writes and Doge2's class does not have.
NOT_OF_DOGE2 = ("mlp_bias", "sliding_window", "rope_parameters", "architectures", "layer_types")


def doge2(folder: Path, **changes: Any) -> Path:
    """A checkpoint of transformers with the config.json that the authors' class writes for it."""
    keys = {key: changes.pop(key) for key in ("dynamic_mask_ratio",) if key in changes}
    write_checkpoint(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e4}, **changes)
    own = {"model_type": "doge2", "architectures": ["Doge2ForCausalLM"], "rope_theta": 5e4}
    own |= {"rope_scaling": None, "dynamic_mask_ratio": 0.0, "hidden_dropout": 0.0}
    own["auto_map"] = {"AutoConfig": "configuration_doge2.Doge2Config"}
    return change_config(folder, drop=NOT_OF_DOGE2, **(own | keys))


def test_what_its_class_takes_where_config_says_nothing() -> None:
    from doge_export.core.config import DogeConfig

    config = DogeConfig.from_dict({"model_type": "doge2", "mlp_bias": True, "sliding_window": 8})
    assert (config.intermediate_size, config.num_experts, config.num_experts_per_tok) == (4096, 4096, 64)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 2, 0)
    assert not config.mlp_bias and config.sliding_window is None  # its model has neither
    assert (config.generation, config.keep_window_size, config.num_key_value_heads) == ("4", 2048, 8)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, ["--kv-cache", "bounded"]),
        ({"is_moe": True, "attention_bias": True}, []),
        ({"is_moe": True}, ["--kv-cache", "bounded", "--routing", "per-token"]),
    ],
    ids=["dense, bounded", "experts", "experts, bounded"],
)
def test_it_is_exported_and_certified(
    changes: dict[str, Any], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = doge2(tmp_path / "c", **changes), tmp_path / "b"
    assert main(["export", "-m", str(folder), "-o", str(bundle), *options, "--no-validate"]) == 0
    capsys.readouterr()
    assert main(["validate", str(bundle), "--reference", str(folder), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["max_abs_diff"] <= 1e-4


def test_convert_writes_it_as_transformers_doge(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = change_config(doge2(tmp_path / "c"), drop=("pad_token_id",))
    convert(str(folder), tmp_path / "d")
    raw = json.loads((tmp_path / "d" / "config.json").read_text())
    assert raw["model_type"] == "doge" and raw["architectures"] == ["DogeForCausalLM"]
    assert raw["pad_token_id"] == 0 and not {"auto_map", "dynamic_mask_ratio"} & set(raw)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "d", dtype=torch.float32, attn_implementation="eager"
    )
    schedule = Schedule("", (14,))
    tokens = draw_tokens(schedule, 257, 0)
    with torch.inference_mode():
        theirs = model(torch.from_numpy(tokens.input_ids)).logits.numpy()
    ours = Reference(folder).run(schedule, tokens).logits
    assert np.abs(theirs - ours).max() <= 1e-5


def test_its_first_weeks_are_refused_by_name(tmp_path: Path) -> None:
    folder = doge2(tmp_path / "c")
    heads = {
        f"model__layers__{layer}__self_attn__{name}": np.zeros(shape, np.float32)
        for layer in (0, 1)
        for name, shape in (("A", 4), ("dt_proj__weight", (4, 32)))
    }
    change_tensors(folder, lambda name: name, **heads)
    with pytest.raises(DogeExportError, match="Doge2 was so from 29 April to 8 June 2025"):
        Checkpoint.open(folder)


def test_where_shapes_cannot_tell_it_warns_of_a_ratio(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for ratio, count in ((0.0, 0), (0.5, 1)):
        folder = doge2(tmp_path / str(ratio), num_key_value_heads=4, dynamic_mask_ratio=ratio)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "doge_export"):
            for _ in range(2):
                load_model(Checkpoint.open(folder))
        assert len(caplog.records) == count
    assert "dynamic_mask_ratio 0.5" in caplog.text


def test_no_earlier_generation_has_its_name(tmp_path: Path) -> None:
    with pytest.raises(DogeExportError, match="of generation 4, not 3b"):
        Checkpoint.open(doge2(tmp_path / "c"), "3b")
