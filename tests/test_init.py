"""Random checkpoints: loadable by the reference, reproducible, and changed only where asked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from doge_export.core import presets
from doge_export.core.bundle import CHECKPOINT
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import reporting
from doge_export.export import init as init_module
from doge_export.export.init import apply_settings, init, write_checkpoint

SMALL = ["vocab_size=96", "hidden_size=32", "intermediate_size=48", "num_hidden_layers=2"]
MOE = ["num_experts=30", "num_experts_per_tok=4"]


def small(folder: Path, *settings: str, preset: str = "Doge-20M", **options: Any) -> dict[str, Any]:
    return init(preset, folder, settings=[*SMALL, *settings], **options)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("Doge-20M", []),
        ("Doge-20M", ["tie_word_embeddings=false"]),
        ("Doge-20M", ["attention_bias=true", "mlp_bias=true", "head_dim=6"]),
        ("Doge-20M", ["rope_parameters.rope_type=default", "num_key_value_heads=2"]),
        ("Doge-20M-MoE", MOE),
        ("Doge-20M-MoE", [*MOE, "mlp_bias=true", "tie_word_embeddings=false"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_reference_loads_it(preset: str, settings: list[str], tmp_path: Path) -> None:
    import torch
    from transformers import DogeForCausalLM

    small(tmp_path / "m", *settings, preset=preset, seed=5)
    model, report = DogeForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    saved = load_file(tmp_path / "m" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), saved[name]), name
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(3, 19)[None]).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(dtype: str, tmp_path: Path) -> None:
    from transformers import DogeForCausalLM

    small(tmp_path / "m", dtype=dtype)
    assert {value.dtype.name for value in load_file(tmp_path / "m" / "model.safetensors").values()} == {dtype}
    assert str(DogeForCausalLM.from_pretrained(tmp_path / "m").dtype) == f"torch.{dtype}"


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small(tmp_path / name, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"
    )
    assert first == again
    # and what says that the folder is ours has the hash of the weights
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors", CHECKPOINT}


def test_a_changed_shape_leaves_other_tensors_alone(tmp_path: Path) -> None:
    small(tmp_path / "a")
    small(tmp_path / "b", "vocab_size=97")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"model.embed_tokens.weight"}


def test_no_two_tensors_are_alike(tmp_path: Path) -> None:
    small(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors").values()
    assert len({tensor.tobytes() for tensor in tensors}) == len(tensors)


def test_the_values_are_where_a_model_has_them(tmp_path: Path) -> None:
    small(tmp_path / "m", "num_hidden_layers=30", "initializer_range=0.05")
    groups: dict[str, list[np.ndarray[Any, Any]]] = {"A": [], "near one": [], "rest": []}
    for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
        near_one = "norm" in name or name.endswith("residual")
        groups["A" if name.endswith(".A") else "near one" if near_one else "rest"].append(tensor.ravel())
    moments = {
        name: (np.mean(x), np.std(x)) for name, x in ((n, np.concatenate(g)) for n, g in groups.items())
    }
    assert moments["A"] == pytest.approx((0, 1), abs=0.5)
    assert moments["near one"] == pytest.approx((1, 0.1), abs=0.01)
    assert moments["rest"] == pytest.approx((0, 0.05), abs=0.001)


def test_config_and_generation_config(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    small(tmp_path / "m", "eos_token_id=[1, 5]", "bos_token_id=null")
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written == {
        **presets.config_dict("Doge-20M"),
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "eos_token_id": [1, 5],
        "bos_token_id": None,
        "dtype": "float32",
    }
    generation = GenerationConfig.from_pretrained(tmp_path / "m")
    assert (generation.eos_token_id, generation.bos_token_id, generation.pad_token_id) == ([1, 5], None, 2)
    assert (generation.temperature, generation.top_p, generation.repetition_penalty) == (0.8, 0.9, 1.0)


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    steps: list[int] = []
    summary = small(
        tmp_path / "m", preset="doge-20m", progress=reporting(lambda numbers, stage: steps.append(numbers))
    )
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert summary == {
        "preset": "Doge-20M",
        "generation": "4",
        "output": str(tmp_path / "m"),
        "seed": 0,
        "dtype": "float32",
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "tensors": len(tensors),
        "bytes": sum(path.stat().st_size for path in (tmp_path / "m").iterdir()),
    }
    assert sum(steps) == summary["parameters"]


def test_everybody_may_read_what_config_json_lets_them(tmp_path: Path) -> None:
    small(tmp_path / "m")
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1


def test_a_word_needs_no_quotes_and_a_new_rope_type_drops_the_old_keys() -> None:
    raw = presets.config_dict("Doge-20M")
    assert apply_settings(raw, ["rope_parameters.rope_type=default"])["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 10000.0,
    }
    linear = apply_settings(raw, ['rope_parameters.rope_type="linear"', "rope_parameters.factor=2.5"])
    assert linear["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
    assert raw == presets.config_dict("Doge-20M")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("hiden_size=3", "Did you mean hidden_size"),
        ("factor=2", "Did you mean rope_parameters.factor?"),
        ("rope_parameters.fctor=2", "Did you mean rope_parameters.factor"),
        ("model_type=llama", "no key 'model_type'"),
        ("dtype=float16", "no key 'dtype'"),
        ("hidden_size", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("hidden_size=big", "hidden_size is 'big'"),
        ("num_key_value_heads=3", "not a multiple"),
        ("rope_parameters.rope_type=yarm", "rope_type 'yarm' is not supported"),
        ("rope_parameters.rope_type=llama3", "needs low_freq_factor"),
        ("vocab_size=2", "pad_token_id 2 is no token of a vocabulary of 2"),
        ("eos_token_id=[1, 40000]", "eos_token_id 40000 is no token"),
        ("initializer_range=NaN", "initializer_range is nan"),
        ("initializer_range=-1", "initializer_range is -1"),
        ("use_cache=1", "use_cache is 1"),
    ],
)
def test_settings_that_are_refused(setting: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DogeExportError) as caught:
        init("Doge-20M", tmp_path / "m", settings=[setting])
    assert sentence in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_copied_where_it_fits(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    (tmp_path / "t").mkdir()
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "c": 3}, unk_token="[UNK]"))
    words.save(str(tmp_path / "t" / "tokenizer.json"))
    (tmp_path / "t" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "t" / "model.safetensors").write_text("not the tokenizer's")
    small(tmp_path / "m", tokenizer=tmp_path / "t")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()
    assert load_file(tmp_path / "m" / "model.safetensors")
    with pytest.raises(DogeExportError, match="4 entries, more than the model's vocab_size of 3"):
        small(tmp_path / "n", "vocab_size=3", tokenizer=tmp_path / "t")
    with pytest.raises(DogeExportError, match=r"has no tokenizer\.json"):
        small(tmp_path / "n", tokenizer=tmp_path)


def test_an_existing_folder_stays_unless_forced(tmp_path: Path) -> None:
    small(tmp_path / "m", seed=1)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    with pytest.raises(DogeExportError, match="exists already"):
        small(tmp_path / "m", seed=2)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    small(tmp_path / "m", seed=2, force=True)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = presets.config_dict("Doge-20M")
    with pytest.raises(DogeExportError, match="seed -1 is negative"):
        write_checkpoint(raw, tmp_path, seed=-1)
    with pytest.raises(DogeExportError, match="'float64' is not a dtype"):
        write_checkpoint(raw, tmp_path, dtype="float64")
    full = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(init_module.shutil, "disk_usage", lambda path: full)
    with pytest.raises(DogeExportError, match=r"needs 0\.1 GB, and 0\.0 GB are free"):
        write_checkpoint(raw, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from doge_export.cli import main; "
        f"assert main(['init', 'Doge-20M', '-o', {str(tmp_path / 'm')!r}, '--set', 'vocab_size=64']) == 0; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random parameters" in done.stdout
