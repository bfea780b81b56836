"""Checkpoint folders as they come: adapters, other programs' formats, pickles and quantized weights."""

from pathlib import Path
from typing import Any

import torch

from doge_export.core.presets import models_folder
from tests.wild._folders import (
    AREA,
    SINGLE,
    Make,
    both,
    config,
    file,
    gone,
    moved,
    plain,
    read,
    rename,
    tensors,
)
from tests.wild._specimen import REFUSED, Specimen
from tests.wild.folder_files import leave_trainer_files

__all__ = ["AREA", "ROWS"]


def _pickle(name: str, nest: Any = lambda state: state) -> Make:
    def write(folder: Path) -> None:
        state = read(folder / SINGLE)
        (folder / SINGLE).unlink()
        torch.save(nest(state), folder / name)

    return write


def _adapter(folder: Path) -> None:
    """A LoRA of doge-tiny, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(models_folder() / "doge-tiny")
    made = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    made.save_pretrained(folder)


def _embedded(folder: Path) -> None:
    """A checkpoint, and a LoRA of it in the same folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain()(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


def _bitsandbytes(found: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    found[name] = torch.zeros(1536, 1, dtype=torch.uint8)
    found[f"{name}.absmax"] = torch.ones(48)
    found[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)


def _packed(found: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj"
    found.pop(f"{name}.weight")
    found[f"{name}.qweight"] = torch.zeros(8, 48, dtype=torch.int32)
    found[f"{name}.qzeros"] = torch.zeros(1, 6, dtype=torch.int32)
    found[f"{name}.scales"] = torch.ones(1, 48, dtype=torch.float16)


def _gptq(found: dict[str, torch.Tensor]) -> None:
    _packed(found)
    found["model.layers.0.mlp.up_proj.g_idx"] = torch.zeros(64, dtype=torch.int32)


def _mlx(found: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj"
    found[f"{name}.weight"] = torch.zeros(48, 8, dtype=torch.uint32)
    found[f"{name}.scales"] = found[f"{name}.biases"] = torch.ones(48, 1)
    found[f"{name}.biases"] = torch.zeros(48, 1)


def _float8(found: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    found[name] = found[name].to(torch.float8_e4m3fn)


_FORMATS = (
    Specimen("an adapter alone", _adapter, ours="-m .*doge-tiny --adapter "),
    Specimen(
        "an adapter whose model is not named",
        file("adapter_config.json", "{}"),
        REFUSED,
        "-m CHECKPOINT --adapter",
    ),
    Specimen("an adapter beside its checkpoint", _embedded, ours="would add to it. .*--adapter"),
    Specimen("a bundle", file("doge_export.json", "{}"), REFUSED, "is what doge-export wrote"),
    Specimen(
        "FSDP's parts, by accelerate",
        both(
            plain(),
            gone(SINGLE),
            file("optimizer_0/__0_0.distcp"),
            file("pytorch_model_fsdp_0/__0_0.distcp"),
        ),
        REFUSED,
        "accelerate merge-weights .*/pytorch_model_fsdp_0 ",
    ),
    Specimen(
        "a distributed checkpoint of transformers",
        both(plain(), moved(SINGLE, "shard-00000-model-00001-of-00001.safetensors")),
        None,
        "a part of a distributed checkpoint",
    ),
    Specimen(
        "DeepSpeed's parts",
        both(
            plain(),
            gone(SINGLE),
            file("zero_to_fp32.py"),
            file("global_step500/mp_rank_00_model_states.pt"),
        ),
        REFUSED,
        "zero_to_fp32.py . . --safe_serialization",
    ),
    Specimen("GGUF", both(plain(), gone(SINGLE), file("doge-q4_k_m.gguf", b"GGUF")), REFUSED, "holds GGUF"),
    Specimen("weights of Keras", both(plain(), gone(SINGLE), file("tf_model.h5")), REFUSED, "not PyTorch's"),
    Specimen("weights of MLX", both(plain(), gone(SINGLE), file("weights.npz")), REFUSED, "not PyTorch's"),
    Specimen(
        "pickled weights", both(plain(), _pickle("pytorch_model.bin")), ours="python -c .*pytorch_model.bin"
    ),
    Specimen(
        "what each process kept",
        both(
            plain(), gone(SINGLE), file("pytorch_model_fsdp_rank0.bin"), file("pytorch_model_fsdp_rank1.bin")
        ),
        REFUSED,
        "FULL_STATE_DICT",
    ),
    Specimen(
        "Megatron's parts",
        both(
            plain(), gone(SINGLE), file("latest_checkpointed_iteration.txt", "500"), file("iter_0000500/x.pt")
        ),
        REFUSED,
        "Megatron",
    ),
    Specimen(
        "pickled weights that are a Git LFS pointer",
        both(
            plain(), gone(SINGLE), file("pytorch_model.bin", "version https://git-lfs.github.com/spec/v1\n")
        ),
        REFUSED,
        "is a Git LFS pointer",
    ),
    Specimen(
        "an adapter without its settings", file("adapter_model.safetensors"), REFUSED, "adapter_config.json"
    ),
    Specimen(
        "pickled weights of somebody's training",
        both(
            plain(),
            leave_trainer_files,
            _pickle("last.ckpt", lambda state: {"state_dict": state, "epoch": 3}),
        ),
        REFUSED,
        "python -c .*last.ckpt",
    ),
)

_QUANTIZED = (
    Specimen(
        "bitsandbytes in 4 bits",
        both(
            plain(),
            tensors(_bitsandbytes),
            config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ),
        REFUSED,
        "by bitsandbytes",
    ),
    Specimen(
        "bitsandbytes without its key in config.json",
        both(plain(), tensors(_bitsandbytes)),
        REFUSED,
        r"by bitsandbytes \(4 bits\)",
    ),
    Specimen(
        "GPTQ",
        both(plain(), tensors(_gptq), config(quantization_config={"quant_method": "gptq", "bits": 4})),
        REFUSED,
        "by GPTQ",
    ),
    Specimen("MLX in 4 bits", both(plain(), tensors(_mlx)), None, "by MLX"),
    Specimen("AWQ without its key", both(plain(), tensors(_packed)), ours="by AWQ or GPTQ"),
    Specimen("fp8", both(plain(), tensors(_float8)), ours="by fp8: it holds .*F8_E4M3"),
    Specimen(
        "AWQ in config.json and plain weights",
        both(plain(), config(quantization_config={"quant_method": "awq", "bits": 4})),
        REFUSED,
        "by AWQ, and its tensors are not",
    ),
    Specimen(
        "a quantization_config without a method",
        both(plain(), config(quantization_config={})),
        REFUSED,
        "no method",
    ),
    Specimen("a quantization_config that is null", both(plain(), config(quantization_config=None))),
    Specimen(
        "a quantization_config that transformers does not know",
        both(plain(), config(quantization_config={"quant_method": "own"})),
        warns="'own', which is passed over",
    ),
    Specimen(
        "int8 weights of generation 2 in DDP",
        both(
            plain("2"),
            rename(lambda name: f"module.{name}"),
            tensors(
                lambda found: found.update(
                    {name: tensor.to(torch.int8) for name, tensor in found.items() if "proj" in name}
                )
            ),
        ),
        None,
        "by int8",
    ),
)

ROWS = (*_FORMATS, *_QUANTIZED)
