"""What `export -m` is given that is not right: one sentence with a remedy, exit code 2, nothing written."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from doge_export.cli.app import run
from doge_export.core import presets
from tests.generations._checkpoints import change_config, change_tensors, make

TINY = presets.models_folder() / "doge-tiny"


def refusal(capsys: pytest.CaptureFixture[str], output: Path, *arguments: object) -> str:
    """The sentence; `arguments` are those of export after -o."""
    for more in ((), ("--dry-run",)):
        assert run(["export", "-o", str(output), *map(str, arguments), *more]) == 2, more
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith("error: ") and "Traceback" not in printed.err
    assert not output.exists()
    return printed.err


@pytest.mark.parametrize("generation", ["1", "2", "3a-filled", "3a", "3b", "3c", "4"])
def test_tensors_too_few_and_too_many(
    generation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "few", generation)
    change_tensors(folder, lambda name: None if "layers.1" in name and "o_proj" in name else name)
    assert run(["export", "-m", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert "holds no tensor 'model.layers.1.self_attn.o_proj.weight'" in capsys.readouterr().err
    folder = make(tmp_path / "many", generation)
    change_tensors(folder, lambda name: name, model__layers__9__x=np.zeros(2, np.float32))
    assert run(["export", "-m", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert "first 'model.layers.9.x'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "c", "4")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    sentence = refusal(capsys, tmp_path / "out", "-m", folder)
    assert "has 4096 entries, more than the model's vocab_size of 257" in sentence
    assert "the model was trained with" in sentence


def test_an_id_beyond_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer entries than the model has rows, and one of them beyond the last."""
    import tokenizers

    folder = make(tmp_path / "c", "4")
    model = tokenizers.models.WordLevel({"a": 0, "b": 300}, unk_token="a")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    assert "has 301 entries" in refusal(capsys, tmp_path / "out", "-m", folder)


def test_an_adapter_of_another_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4,
                                                          "init_lora_weights": True}))  # fmt: skip
    module = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    halves = {f"{module}A.weight": np.zeros((2, 64)), f"{module}B.weight": np.zeros((64, 2))}
    save_file(halves, lora / "adapter_model.safetensors")
    sentence = refusal(capsys, tmp_path / "out", "-m", "doge-tiny", "--adapter", lora)
    assert "is for another model" in sentence and "that the adapter was trained on" in sentence


def test_no_network_and_no_such_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline mode, which conftest.py sets."""
    sentence = refusal(capsys, tmp_path / "out", "-m", "owner/name@v9")
    assert "offline mode is on" in sentence and "owner/name@v9" in sentence


def test_pickled_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "c", "2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    sentence = refusal(capsys, tmp_path / "out", "-m", folder)
    assert "never loaded" in sentence and "python -c" in sentence


def test_two_generations_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "c", "3c", settings=("num_key_value_heads=4",))
    assert "Say which one it is with --generation." in refusal(capsys, tmp_path / "out", "-m", folder)
    other = make(tmp_path / "d", "2")
    change_config(other, drop=("num_cdm",), dynamic_mask_ratio=0.5)
    assert "config.json is of generation 3a" in refusal(capsys, tmp_path / "out", "-m", other)


def test_a_tensor_that_is_not_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "c", "4")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int64)
    save_file(tensors, folder / "model.safetensors")
    assert "is I64" in refusal(capsys, tmp_path / "out", "-m", folder)
