"""LoRA adapters as PEFT saves them (adapter_config.json, adapter_model.safetensors), merged into a
checkpoint.

A merged weight is W + s B A with s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Hu et al.,
arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732); of an embedding W + s (B A)^T. What is saved whole
replaces the checkpoint's. Whatever else PEFT can do is refused by its name: a pickle is never opened."""

import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.checkpoint import Checkpoint, copy_config
from doge_export.errors import DogeExportError
from doge_export.generations import canonical_names
from doge_export.json_file import read_object
from doge_export.tokenizer import copy_tokenizer_files, has_tokenizer

__all__ = ["Adapter", "write_merged"]

_Array = npt.NDArray[Any]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LOW_RANK = {".lora_A.weight": 0, ".lora_B.weight": 1, ".lora_embedding_A": 0, ".lora_embedding_B": 1}
#: Settings under which the saved matrices are not what is added to the checkpoint's weights -> what they are
#: where that is not so.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")  # those that leave the checkpoint as it is


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. Weights go by transformers' names: `pairs` are A, B and the scale of what is added,
    `whole` what replaces the checkpoint's."""

    folder: Path
    pairs: Mapping[str, tuple[_Array, _Array, float]]
    whole: Mapping[str, _Array]

    @classmethod
    def open(cls, folder: Path, checkpoint: Checkpoint) -> "Adapter":
        """Read the adapter and hold it to the checkpoint.

        Raises:
            DogeExportError: it is no LoRA adapter in safetensors, it is one of a kind that is not a sum, or
                it was made for a model of another shape.
        """
        settings = _settings(folder)
        tensors = _tensors(folder)
        halves: dict[str, list[Any]] = {}
        whole: dict[str, _Array] = {}
        for name, tensor in tensors.items():
            short = name.removeprefix(_PREFIX)
            end = next((end for end in _LOW_RANK if short.endswith(end)), None)
            if end is None:
                if "lora_" in short:
                    raise DogeExportError(
                        f"{folder} holds {name!r}, which is not a matrix of plain LoRA.",
                        "Merge the adapter with PEFT's merge_and_unload, and export the result.",
                    )
                # An embedding's own weights are saved beside what is added to them.
                whole[_known(short.replace(".base_layer.", "."), checkpoint, folder)] = tensor
                continue
            weight = _known(f"{short.removesuffix(end)}.weight", checkpoint, folder)
            half = tensor.T if "embedding" in end else tensor
            halves.setdefault(weight, [None, None])[_LOW_RANK[end]] = half
        pairs = {}
        for name, (first, second) in halves.items():
            if first is None or second is None:
                raise DogeExportError(
                    f"{folder} lacks half of the adapter of {name!r}.", "Download it again."
                )
            # Of an embedding: (B A)^T = A^T B^T
            down, up = (second, first) if name == "model.embed_tokens.weight" else (first, second)
            rank = down.shape[0]
            if up.shape[-1] != rank or (up.shape[0], down.shape[1]) != checkpoint.shapes[name]:
                raise _other_shape(folder, name, (up.shape[0], down.shape[1]), checkpoint)
            pairs[name] = (down, up, _scale(settings, name.removesuffix(".weight"), rank))
        for name, tensor in whole.items():
            if tuple(tensor.shape) != checkpoint.shapes[name]:
                raise _other_shape(folder, name, tuple(tensor.shape), checkpoint)
        return cls(folder, pairs, whole)

    def merged(self, name: str, tensor: _Array) -> _Array:
        """The checkpoint's `tensor` with what the adapter makes of it, in its dtype; summed in float32."""
        if name in self.whole:
            tensor = self.whole[name].astype(tensor.dtype)
        if name not in self.pairs:
            return tensor
        down, up, scale = self.pairs[name]
        added = up.astype(np.float32) @ down.astype(np.float32)
        return np.asarray(tensor.astype(np.float32) + np.float32(scale) * added, tensor.dtype)


def write_merged(
    checkpoint: Checkpoint,
    adapter: Adapter,
    folder: Path,
    advance: Callable[[int], None] = lambda numbers: None,
) -> None:
    """Write the checkpoint with the adapter merged into `folder`, in its own format and names. The tokenizer
    is the adapter's, where it has one. `advance` gets the numbers of each tensor."""
    from safetensors.numpy import save_file

    tensors = {}
    for name, stored in checkpoint.stored.items():
        tensors[stored] = np.asarray(adapter.merged(name, checkpoint.array(name)), order="C")
        advance(math.prod(checkpoint.shapes[name]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    copy_config(checkpoint, folder)
    if (checkpoint.folder / "generation_config.json").is_file():
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")
    copy_tokenizer_files(adapter.folder if has_tokenizer(adapter.folder) else checkpoint.folder, folder)


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / _CONFIG).is_file():
        raise DogeExportError(
            f"{folder} has no {_CONFIG}.", "Give the folder that PEFT's save_pretrained wrote."
        )
    settings = read_object(folder / _CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise DogeExportError(
            f"{folder} is an adapter of the type {kind!r}, and only LORA can be merged here.",
            "Merge it with PEFT's merge_and_unload, and export the result.",
        )
    for key, plain in _PLAIN.items():
        if settings.get(key) not in plain:
            raise DogeExportError(
                f"{folder} is a LoRA adapter with {key} {settings[key]!r}, which cannot be merged here.",
                "Merge it with PEFT's merge_and_unload, and export the result.",
            )
    start = settings.get("init_lora_weights")
    if start not in _INITIALISATIONS:
        raise DogeExportError(
            f"{folder} was begun with init_lora_weights {start!r}, which changes the checkpoint too.",
            "Merge it with PEFT's merge_and_unload, and export the result.",
        )
    return settings


def _tensors(folder: Path) -> dict[str, _Array]:
    from safetensors import SafetensorError, safe_open

    path = folder / _WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise DogeExportError(
            f"{folder} holds a pickled adapter only, which is never loaded."
            if pickled
            else f"{folder} has no {_WEIGHTS}.",
            "Save it with PEFT's save_pretrained(..., safe_serialization=True).",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError):
        raise DogeExportError(
            f"{path} is truncated or not a safetensors file.", "Download it again."
        ) from None


def _known(name: str, checkpoint: Checkpoint, folder: Path) -> str:
    """The tensor by transformers' name."""
    (ours,) = canonical_names([name])
    if ours == "lm_head.weight" and checkpoint.config.tie_word_embeddings:
        raise DogeExportError(
            f"{folder} changes lm_head, which is one table with the embedding in {checkpoint.folder}.",
            "Train an adapter of the layers, or untie the embeddings first.",
        )
    if ours not in checkpoint.shapes:
        raise DogeExportError(
            f"{folder} changes {name!r}, which {checkpoint.folder} does not have.",
            "Give the checkpoint that the adapter was trained on.",
        )
    return ours


def _other_shape(folder: Path, name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> DogeExportError:
    return DogeExportError(
        f"{folder} is for another model: {name} is {list(shape)} there, and {list(checkpoint.shapes[name])} "
        f"in {checkpoint.folder}.",
        "Give the checkpoint that the adapter was trained on.",
    )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product is multiplied with, by the module's own alpha where it has one."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
