"""What folders hold that are no plain checkpoint: cures that work as printed, and commands that find it
beforehand."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from doge_export.cli import main
from doge_export.cli.app import run
from doge_export.core.checkpoint.fit import check_finite, check_tensors
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import canonical_names, is_computed
from doge_export.core.presets import load
from doge_export.core.tensor_shapes import parameter_count, tensor_shapes
from doge_export.export.convert import convert
from doge_export.export.init import check_room
from doge_export.export.pipeline import export_model
from doge_export.model import load_model
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.conftest import write_checkpoint
from tests.wild._folders import config, rename, tensors

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def remedy(folder: Path) -> str:
    with pytest.raises(DogeExportError) as caught:
        Checkpoint.open(folder)
    return caught.value.remedy


def follow(folder: Path, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the command of the remedy does; those that import torch, in this process."""
    name, *words = shlex.split(remedy(folder).partition(before)[2])
    if name == "python":
        option, code, *arguments = words
        assert option == "-c"
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        exec(code, {})
    elif name == "accelerate":
        from accelerate.commands.accelerate_cli import main as accelerate

        monkeypatch.setattr(sys, "argv", [name, *words])
        accelerate()
    else:
        subprocess.run([name, *words], check=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def holds(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = load_model(Checkpoint.open(folder)).state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_remedy_of_pickles_works_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a strange name: nested, with a tied head and one that is transposed, beside what a
    trainer leaves; then in two files."""
    folder = write_checkpoint(tmp_path / "it's [a] $folder")
    expected = weights(folder)
    (folder / "model.safetensors").unlink()
    state = {f"_orig_mod.{name}": tensor.T.contiguous().T if tensor.dim() == 2 else tensor
             for name, tensor in expected.items()}  # fmt: skip
    state[HEAD] = state[f"_orig_mod.{EMBEDDING}"]
    moments = {number: {"exp_avg": torch.ones(2)} for number in range(40)}
    torch.save({"epoch": 3, "model": state, "optimizer": {"state": moments}}, folder / "[last].pth")
    torch.save({}, folder / "optimizer.pt")
    follow(folder, "Convert them: ", monkeypatch)
    assert holds(folder, expected)
    (folder / "model.safetensors").unlink()
    for number in (0, 1):
        part = {name: tensor for at, (name, tensor) in enumerate(expected.items()) if at % 2 == number}
        torch.save(part, folder / f"pytorch_model-0000{number + 1}-of-00002.bin")
    follow(folder, "Convert them: ", monkeypatch)
    assert holds(folder, expected)


@pytest.mark.filterwarnings("ignore")  # of torch.distributed about being alone
def test_fsdp_parts_are_merged_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    import torch.distributed.checkpoint as dcp

    folder = write_checkpoint(tmp_path / "a folder")
    expected = weights(folder)
    (folder / "model.safetensors").unlink()
    dcp.save({"model": expected}, checkpoint_id=str(folder / "pytorch_model_fsdp_0"), no_dist=True)
    follow(folder, "Merge them: ", monkeypatch)
    assert holds(folder, expected)


def test_a_variant_is_taken_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DogeForCausalLM

    folder = write_checkpoint(tmp_path / "a folder")
    expected = weights(folder)
    model: Any = DogeForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, variant="fp16", max_shard_size="40KB")
    follow(folder, "weights: ", monkeypatch)
    assert holds(folder, expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's own call into transformers
def test_an_adapter_is_exported_by_the_command_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, and beside its checkpoint, which transformers would add it to."""
    from peft import LoraConfig, get_peft_model
    from transformers import DogeForCausalLM

    base, alone = write_checkpoint(tmp_path / "its base"), tmp_path / "alone"
    model: Any = DogeForCausalLM.from_pretrained(base)
    made = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    made.save_pretrained(alone)
    made.save_pretrained(base)
    for folder in (alone, base):
        for command in (["export", "--dry-run"], ["convert"]):
            given = [*command, "-o", str(tmp_path / "out")]
            assert run([*given, "-m", str(folder)]) == 2
            options = shlex.split(capsys.readouterr().err.partition(": -m ")[2])
            assert options[0] == str(base) and options[1:] == ["--adapter", str(folder)]
    assert run(["convert", "-o", str(tmp_path / "out"), "-m", *options]) == 0


def test_convert_and_export_refuse_a_tied_head_that_is_another(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    tensors(lambda found: found.update({HEAD: found[EMBEDDING].flip(0)}))(folder)
    for refuse in (convert, export_model):
        with pytest.raises(DogeExportError, match="ties the embeddings"):
            refuse(str(folder), tmp_path / "out")
    assert main(["export", "-m", str(folder), "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert main(["init", "--from-dense", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_the_judge_of_a_wrapped_model_has_its_weights(tmp_path: Path) -> None:
    """transformers would draw them at random."""
    folder = write_checkpoint(tmp_path / "c", num_hidden_layers=1)
    schedule = Schedule("", (9, 1))
    tokens = draw_tokens(schedule, 257, 0)
    expected = Reference(folder).run(schedule, tokens).logits
    rename(lambda name: f"_orig_mod.{name}")(folder)
    assert np.array_equal(Reference(folder).run(schedule, tokens).logits, expected)


def test_what_is_written_names_no_file_that_is_not_there(tmp_path: Path) -> None:
    """transformers_weights is of the folder that was read."""
    folder = write_checkpoint(tmp_path / "c", num_hidden_layers=1)
    expected = weights(folder)
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    config(transformers_weights="w.safetensors")(folder)
    convert(str(folder), tmp_path / "converted")
    assert holds(tmp_path / "converted", expected)
    export_model(str(folder), tmp_path / "bundle", validate=False)
    assert "transformers_weights" not in json.loads((tmp_path / "bundle" / "config.json").read_text())


@pytest.mark.parametrize(
    ("stored", "number", "dtype", "fits"),
    [
        ("float32", 65519.0, "float16", True),
        ("float32", 65520.0, "float16", False),
        ("float32", 65520.0, "bfloat16", True),
        ("float64", 1e39, "float32", False),
        ("bfloat16", float("-inf"), "float32", False),
        ("float16", float("nan"), "float32", False),
        ("float64", -3e38, "float32", True),
    ],
)
def test_weights_are_numbers_in_the_type_of_the_export(
    stored: str, number: float, dtype: str, fits: bool, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, dtype=stored, num_hidden_layers=1)
    tensors(lambda found: found["model.norm.weight"].__setitem__(7, number))(folder)
    checkpoint = Checkpoint.open(folder)
    assert bool(checkpoint.tensor("model.norm.weight").to(getattr(torch, dtype)).isfinite().all()) == fits
    if fits:
        check_finite(checkpoint, dtype)
        return
    with pytest.raises(DogeExportError, match=rf"model.norm.weight .* not finite in {dtype}"):
        check_finite(checkpoint, dtype)


def test_what_no_folder_and_no_machine_holds_is_refused(tmp_path: Path) -> None:
    """Before anything is listed, built or drawn."""
    out = tmp_path / "out"
    for setting in ("num_hidden_layers=1000000", "vocab_size=2000000000", "num_hidden_layers=2147483647"):
        assert main(["init", "Doge-20M", "-o", str(out), "--set", setting]) == 2
    many = ["--set", "num_experts=2000000000"]
    assert main(["init", "--from-dense", "doge-tiny", "-o", str(out), *many]) == 2
    folder = write_checkpoint(tmp_path / "c")
    config(num_hidden_layers=2**31 - 1)(folder)
    with pytest.raises(
        DogeExportError, match=r"layers\.2\..* num_hidden_layers 2, and config.json says 2147483647"
    ):
        check_tensors(Checkpoint.open(folder))
    for command in (["export"], ["export", "--dry-run"], ["convert"]):
        assert main([*command, "-m", str(folder), "-o", str(out)]) == 2
    assert not out.exists()


def test_memory_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from doge_export.export import init as init_module

    monkeypatch.setattr(init_module, "available_memory", lambda: 1_000_000)
    with pytest.raises(DogeExportError, match=r"needs 0\.1 GB, and 0\.0 GB of memory"):
        check_room(load("Doge-20M"), 4, tmp_path)


def test_parameters_are_counted_without_a_list() -> None:
    for preset in ("Doge-20M", "Doge-20M-MoE"):
        shapes = tensor_shapes(load(preset)).values()
        assert parameter_count(load(preset)) == sum(int(np.prod(shape)) for shape in shapes)


def test_a_name_of_the_model_is_no_buffer() -> None:
    for preset in ("Doge-20M", "Doge-20M-MoE"):
        names = list(tensor_shapes(load(preset)))
        assert not any(map(is_computed, names))
        assert canonical_names(names) == {name: name for name in names}
    with pytest.raises(DogeExportError, match="twice"):
        canonical_names(["model.norm.weight", "module.norm.weight"])


def test_a_tensor_in_two_files_is_compared_byte_for_byte(tmp_path: Path) -> None:
    """In bfloat16, which numpy has not."""
    folder = write_checkpoint(tmp_path, dtype="bfloat16", num_hidden_layers=1)
    found = weights(folder)
    save_file(found, folder / "a.safetensors")
    save_file(found, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    places = dict.fromkeys(found, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert holds(folder, {name: tensor.float() for name, tensor in found.items()})
