"""convert, init --from-dense and adapters: what is written computes what it should, by transformers and by
PEFT's own merge; what cannot be is refused in a sentence."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from doge_export.cli import main
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.core.presets import models_folder
from doge_export.export.convert import add_experts, convert
from doge_export.export.pipeline import export_model
from tests.generations._checkpoints import EARLIER, change_config, change_tensors, make

TINY = models_folder() / "doge-tiny"
IDS = torch.arange(40)[None] * 7 % 250


def logits(folder: Path) -> torch.Tensor:
    from transformers import DogeForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = DogeForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(DogeExportError) as caught:
        convert(*arguments, **named)
    assert caught.value.exit_code == 2 and caught.value.remedy
    return str(caught.value)


def test_a_current_one_in_old_names_is_rewritten(tmp_path: Path) -> None:
    from doge_export.core.generations import stored_name

    folder = make(tmp_path / "c", "4", moe=True)
    expected = logits(folder)
    change_tensors(folder, lambda name: stored_name(name, "2"))
    left = {"dynamic_mask_ratio": 0.0, "num_cdmoe_heads": 1, "auto_map": {"AutoModel": "x.Y"}}
    change_config(folder, note="mine", **left)
    summary = convert(str(folder), tmp_path / "out")
    assert summary["renamed"] > 0 and summary["generation"] == "4"
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["note"] == "mine" and not set(left) & set(raw)
    assert torch.equal(logits(tmp_path / "out"), expected)


@pytest.mark.parametrize("generation", EARLIER)
def test_an_earlier_one_has_no_equal(generation: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation)
    message = refused(str(folder), tmp_path / "out")
    same = GENERATIONS[generation].dense or generation  # without experts
    assert f"generation {same} " in message and "normalises every query and key" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_damaged_one_is_refused(change: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "4")
    if change == "missing":
        change_tensors(folder, lambda name: None if name.endswith("layers.1.mlp.up_proj.weight") else name)
    else:
        change_tensors(folder, lambda name: name, model__layers__7__self_attn__A=np.zeros(2, np.float32))
    assert "layers." in refused(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_experts_beside_a_dense_one_add_nothing(tmp_path: Path) -> None:
    out = tmp_path / "moe"
    assert main(["init", "--from-dense", "doge-tiny", "-o", str(out), "--set", "num_experts=64",
                "--set", "num_experts_per_tok=4"]) == 0  # fmt: skip
    checkpoint = Checkpoint.open(out)
    assert checkpoint.config.is_moe and checkpoint.config.num_experts == 64
    assert not checkpoint.array("model.layers.0.mlp.up_embed.weight").any()
    assert checkpoint.array("model.layers.0.mlp.down_embed.weight").std() > 0
    assert (logits(out) - logits(TINY)).abs().max() <= 1e-5


def test_experts_are_added_to_dense_ones_alone(tmp_path: Path) -> None:
    for source in ("doge-tiny-moe", str(make(tmp_path / "c", "3c"))):
        with pytest.raises(DogeExportError):
            add_experts(source, tmp_path / "out")
    with pytest.raises(DogeExportError, match="no key 'hidden_size'"):
        add_experts("doge-tiny", tmp_path / "out", settings=["hidden_size=8"])
    assert not (tmp_path / "out").exists()
    assert main(["init", "-o", str(tmp_path / "out")]) == 2
    assert main(["init", "Doge-20M", "--from-dense", "doge-tiny", "-o", str(tmp_path / "out")]) == 2


def adapter(folder: Path, base: Path, **changes: Any) -> Path:
    """A small LoRA of q_proj and down_proj with random weights, as PEFT lays it out."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "bias": "none", "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
    tensors = {}
    for name, (rows, columns) in _targets(base):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = rng.normal(0, 0.1, (4, columns)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = rng.normal(0, 0.1, (rows, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _targets(base: Path) -> list[tuple[str, tuple[int, ...]]]:
    shapes = Checkpoint.open(base).shapes
    return [(name, shape) for name, shape in shapes.items() if "q_proj" in name or "mlp.down_proj" in name]


def test_a_merged_adapter_is_the_sum(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", TINY)
    convert("doge-tiny", tmp_path / "out", adapter=lora)
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    parts = load_file(lora / "adapter_model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name, _ in _targets(TINY)}
    for name in changed:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        added = 3.0 * parts[f"{module}.lora_B.weight"] @ parts[f"{module}.lora_A.weight"]
        np.testing.assert_allclose(after[name], before[name] + added, rtol=1e-6, atol=1e-6)


def test_export_validate_and_verify_with_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make(tmp_path / "c", "4")
    lora = adapter(tmp_path / "lora", base)
    bundle = export_model(str(base), tmp_path / "b", adapter=lora, validate=False).bundle
    assert main(["validate", str(bundle.path), "--reference", str(base), "--adapter", str(lora)]) == 0
    assert main(["validate", str(bundle.path), "--reference", str(base)]) == 1
    rebuilt = ["verify", str(bundle.path), "--reference", str(base), "--adapter", str(lora)]
    assert main([*rebuilt, "--rebuild"]) == 0
    capsys.readouterr()
    assert main(["verify", str(bundle.path), "--adapter", str(lora)]) == 2
    assert "merged by --rebuild" in capsys.readouterr().err


def test_an_adapter_of_an_earlier_generation(tmp_path: Path) -> None:
    """In the names of its time."""
    base = make(tmp_path / "c", "2")
    lora = adapter(tmp_path / "lora", base)
    tensors = load_file(lora / "adapter_model.safetensors")
    renamed = {name.replace(".mlp.", ".feed_forward."): value for name, value in tensors.items()}
    save_file(renamed, lora / "adapter_model.safetensors")
    exported = export_model(str(base), tmp_path / "b", adapter=lora)
    assert exported.report is not None and exported.report.passed


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_other_adapters_are_refused_by_name(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", TINY, **changes)
    assert word in refused("doge-tiny", tmp_path / "out", adapter=lora)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", make(tmp_path / "c", "4"))
    assert "for another model" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    path = lora / "adapter_model.safetensors"
    whole = load_file(adapter(tmp_path / "fits", TINY) / path.name)
    half = {name: value for name, value in whole.items() if "layers.0.self_attn.q_proj.lora_B" not in name}
    save_file(half, path)
    assert "lacks half" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    save_file({**whole, "base_model.model.model.layers.0.self_attn.x.lora_A.weight": np.zeros(4)}, path)
    assert "does not have" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file({**whole, magnitude: np.zeros(4, np.float32)}, path)
    assert "lora_magnitude_vector" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    path.rename(lora / "adapter_model.bin")
    assert "never loaded" in refused("doge-tiny", tmp_path / "out", adapter=lora)
    (tmp_path / "none").mkdir()
    assert "adapter_config.json" in refused("doge-tiny", tmp_path / "out", adapter=tmp_path / "none")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT asks for it
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers")
@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word_embeddings")  # the merge keeps one table
def test_a_merged_adapter_is_pefts_own_merge(tmp_path: Path) -> None:
    """Of every setting that is a sum: ranks and alphas of their own, rslora, an embedding, a module saved
    whole."""
    import peft
    from transformers import DogeForCausalLM

    for number, settings in enumerate(
        (
            {"target_modules": ["q_proj", "v_proj", "dt_proj", "up_proj"], "r": 4, "lora_alpha": 10},
            {"target_modules": ["k_proj", "o_proj"], "r": 3, "lora_alpha": 7, "use_rslora": True},
            {
                "target_modules": ["q_proj", "down_proj"],
                "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 5},
                "alpha_pattern": {"self_attn.q_proj": 3},
            },
            {"target_modules": ["embed_tokens", "gate_proj"], "modules_to_save": ["norm"]},
        )
    ):
        torch.manual_seed(number)
        base: Any = DogeForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **settings))
        lora = tmp_path / f"lora{number}"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(0.1)
                if "lora_embedding" in name:  # PEFT draws it so large that float32 steps by more than 1e-6
                    parameter.mul_(0.1)
        model.save_pretrained(lora)
        expected = dict(model.merge_and_unload().named_parameters())
        convert("doge-tiny", tmp_path / f"out{number}", adapter=lora)
        got, before = (
            load_file(folder / "model.safetensors") for folder in (tmp_path / f"out{number}", TINY)
        )
        assert any(np.abs(got[name] - before[name]).max() > 1e-2 for name in got)
        for name, weight in got.items():
            assert np.abs(weight - expected[name].detach().numpy()).max() <= 1e-6, (name, settings)


def test_the_command_for_pickled_weights_works(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(TINY, folder)
    from safetensors.torch import load_file as load_torch

    torch.save(load_torch(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refused(str(folder), tmp_path / "out")
    command = shlex.split(message.partition("Convert them: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    convert(str(folder), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (TINY, tmp_path / "out"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
