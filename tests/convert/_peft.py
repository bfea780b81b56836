"""PEFT's own adapters and its own merge, beside ours."""

import copy
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from doge_export.core.adapters import Adapter, write_merged
from doge_export.core.checkpoint.folder import Checkpoint

__all__ = ["assert_same", "change", "merged_by_peft", "merged_by_us", "train"]

Tensors = dict[str, npt.NDArray[Any]]


def _loaded(base: Path) -> Any:
    return _load(base, (base / "model.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _load(base: Path, written: int) -> Any:
    """Each once, for as long as its file is the same."""
    from transformers import DogeForCausalLM

    return DogeForCausalLM.from_pretrained(base, dtype="auto")


def train(base: Path, folder: Path, size: float = 0.1, **settings: Any) -> Path:
    """An adapter of `base` as PEFT saves it, every number of it moved by random ones of about `size`."""
    import peft

    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what is tested here
        model = peft.get_peft_model(copy.deepcopy(_loaded(base)), peft.LoraConfig(**settings))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * size
                if "lora_" in name and "magnitude" not in name:
                    parameter.copy_(drawn)
                elif any(part in name for part in ("magnitude", "modules_to_save", "trainable", "bias")):
                    parameter.add_(drawn)
        model.save_pretrained(folder)
    return folder


def change(
    folder: Path, settings: Mapping[str, Any] | None = None, rename: Any = None, **tensors: Any
) -> Path:
    """Another adapter_config.json, other names (None drops a tensor) or other tensors, `__` for a dot."""
    import json

    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(settings or {})}))
    weights = folder / "adapter_model.safetensors"
    kept = {(rename or str)(name): value for name, value in load_file(weights).items()}
    kept.pop(None, None)  # type: ignore[call-overload]
    save_file({**kept, **{name.replace("__", "."): value for name, value in tensors.items()}}, weights)
    return folder


def merged_by_peft(base: Path, folder: Path) -> tuple[bool, Tensors]:
    """Whether the merged model is tied, and its tensors."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(_loaded(base)), folder)
        model = model.merge_and_unload()
    # The types of the checkpoint are those of the sum.
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    return model.config.tie_word_embeddings, {name: value.float().numpy() for name, value in tensors.items()}


def merged_by_us(base: Path, folder: Path, output: Path) -> tuple[bool, Tensors]:
    """The same, of the folder that is exported in the checkpoint's place."""
    checkpoint = Checkpoint.open(base)
    output.mkdir(exist_ok=True)
    write_merged(checkpoint, Adapter.open(folder, checkpoint), output)
    merged = Checkpoint.open(output)
    tensors = {name: merged.array(name) for name in merged.shapes}
    assert {str(tensor.dtype) for tensor in tensors.values()} == {str(_loaded(base).dtype)[len("torch.") :]}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    if merged.config.tie_word_embeddings:
        assert "lm_head.weight" not in tensors
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return merged.config.tie_word_embeddings, tensors


def assert_same(peft: tuple[bool, Tensors], ours: tuple[bool, Tensors], dtype: str = "float32") -> None:
    """Within 1e-5 in float32. In half precisions the sum of float32 that is rounded may lie on either side of
    a tie: one number in a thousand may be a step apart."""
    assert peft[0] == ours[0]
    assert peft[1].keys() == ours[1].keys()
    step = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    apart = total = 0
    for name, expected in peft[1].items():
        off = np.abs(expected - ours[1][name])
        assert (off <= step * (np.abs(expected) + 1)).all(), (name, off.max())
        apart, total = apart + np.count_nonzero(off), total + off.size
    assert dtype == "float32" or apart <= total / 1000, (apart, total)
