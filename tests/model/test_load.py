"""A checkpoint's tensors in the model: by name, by shape, without a copy where the dtype is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.model import load_model
from tests.conftest import write_checkpoint
from tests.model._reference import Pair, calls

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CALL = calls((14, 1, 1), (0, 3))


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> Checkpoint:
    """The checkpoint with `change` made to its tensors and `config` to its config.json."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return Checkpoint.open(folder)


def refused(checkpoint: Checkpoint) -> DogeExportError:
    with pytest.raises(DogeExportError) as caught:
        load_model(checkpoint)
    assert caught.value.remedy and "\n" not in str(caught.value)
    return caught.value


def reference(folder: Path, dtype: str = "float32") -> Any:
    from transformers import DogeForCausalLM

    return DogeForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager").eval()


@pytest.mark.parametrize(
    "changes", [{}, {"is_moe": True}, {"tie_word_embeddings": False, "attention_bias": True}]
)
def test_is_the_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, **changes)
    pair = Pair(reference(folder), load_model(Checkpoint.open(folder)))
    apart = (pair.run_reference(CALL) - pair.run_ours(CALL)).abs()
    assert apart[CALL.mask.bool()].max() <= 1e-5


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_buffers_of_the_rope_are_computed(rope_type: str, tmp_path: Path) -> None:
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10000.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.5] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 20}
    folder = write_checkpoint(tmp_path, rope_parameters=rope)
    model = load_model(Checkpoint.open(folder))
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    call = calls((30, 1))
    pair = Pair(reference(folder), model)
    assert (pair.run_reference(call) - pair.run_ours(call)).abs().max() <= 1e-5


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_dtypes(stored: str, wanted: str, tmp_path: Path) -> None:
    """Every pair loads; rounded once; a view of the mapped file where nothing has to be rounded."""
    folder = write_checkpoint(tmp_path, dtype=stored, num_hidden_layers=1)
    model = load_model(Checkpoint.open(folder), wanted)
    on_disk = load_file(folder / "model.safetensors")
    ranges = [
        tuple(int(number, 16) for number in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    for name, parameter in model.named_parameters():
        assert parameter.dtype == DTYPES[wanted] and not parameter.requires_grad
        assert torch.equal(parameter, on_disk[name].to(DTYPES[wanted]))
        mapped = any(first <= parameter.data_ptr() < last for first, last in ranges)
        assert mapped == (stored == wanted), name
    assert not model.training


def test_half_precision_model_runs(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, dtype="bfloat16", keep_window_size=64)
    pair = Pair(reference(folder, "bfloat16"), load_model(Checkpoint.open(folder), "bfloat16"))
    expected, got = pair.run_reference(CALL), pair.run_ours(CALL)
    assert got.dtype == torch.bfloat16
    real = CALL.mask.bool()
    assert (expected - got).abs()[real].max() <= 0.25 * expected[real].float().std()


def test_a_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.A"
    error = refused(changed(write_checkpoint(tmp_path), lambda tensors: tensors.pop(name)))
    assert name in error.message


def test_a_tensor_too_many(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)

    error = refused(changed(write_checkpoint(tmp_path), change))
    assert "q_proj.bias" in error.message and "attention_bias" in error.remedy


def test_a_layer_too_many(tmp_path: Path) -> None:
    error = refused(changed(write_checkpoint(tmp_path), lambda tensors: None, num_hidden_layers=1))
    assert "model.layers.1." in error.message


@pytest.mark.parametrize(
    "change", [{"vocab_size": 256}, {"intermediate_size": 40}, {"num_key_value_heads": 4}]
)
def test_a_wrong_shape(change: dict[str, int], tmp_path: Path) -> None:
    error = refused(changed(write_checkpoint(tmp_path), lambda tensors: None, **change))
    assert "config.json" in error.message and "[" in error.message


def test_a_transposed_tensor(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].T.contiguous()

    error = refused(changed(write_checkpoint(tmp_path), change))
    assert name in error.message and "[64, 48]" in error.message and "[48, 64]" in error.message


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    """transformers draws one at random and goes on."""
    error = refused(changed(write_checkpoint(tmp_path), lambda tensors: None, tie_word_embeddings=False))
    assert "lm_head.weight" in error.message


def test_experts_that_the_config_does_not_know(tmp_path: Path) -> None:
    error = refused(changed(write_checkpoint(tmp_path, is_moe=True), lambda tensors: None, is_moe=False))
    assert "is_moe" in error.remedy


def test_the_tied_head_stored_a_second_time(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = write_checkpoint(tmp_path)
    pair = Pair(reference(folder), load_model(changed(folder, change)))
    assert (pair.run_reference(CALL) - pair.run_ours(CALL)).abs()[CALL.mask.bool()].max() <= 1e-5


def test_a_tied_head_that_is_another(tmp_path: Path) -> None:
    """transformers 5 does not tie then, and warns: the config is wrong. Follow it, or refuse."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    folder = write_checkpoint(tmp_path)
    checkpoint = changed(folder, change)
    try:
        model = load_model(checkpoint)
    except DogeExportError:
        return
    pair = Pair(reference(folder), model)
    assert (pair.run_reference(CALL) - pair.run_ours(CALL)).abs()[CALL.mask.bool()].max() <= 1e-5


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "one")
    model = reference(folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (load_model(Checkpoint.open(tmp_path / name)).state_dict() for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
