"""adapter_model.safetensors: its tensors, and what their names say that each is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from doge_export.core.adapters.steps import Array
from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content
from doge_export.core.json_file import is_there

__all__ = ["Part", "read_parts"]

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DTYPES = ("F64", "F32", "F16", "BF16")

#: Ends of names -> what the tensor is. `default` is the name that PEFT gives an adapter when it is loaded;
#: saved files leave it out, and a state dict has it.
_ENDS = {
    r"\.lora_A(\.default)?\.weight": "A",
    r"\.lora_B(\.default)?\.weight": "B",
    r"\.lora_B(\.default)?\.bias": "bias of B",
    r"\.lora_embedding_A(\.default)?": "embedding A",
    r"\.lora_embedding_B(\.default)?": "embedding B",
    r"\.lora_magnitude_vector((\.default)?\.weight)?": "magnitude",
    r"\.lora_velora_embed(\.default)?": "velora",
    r"\.token_adapter\.trainable_tokens_delta": "rows",
    r"\.base_layer\.weight": "weight below",
    r"\.base_layer\.bias": "bias below",
}


@dataclass(frozen=True)
class Part:
    """One tensor of an adapter. `owner` is its module, or its own name where it is saved whole (`role`
    "whole")."""

    name: str
    owner: str
    role: str
    value: Array

    @property
    def module(self) -> str:
        """The module that it belongs to."""
        return self.owner.rpartition(".")[0] if self.role == "whole" else self.owner


def read_parts(folder: Path) -> list[Part]:
    """The adapter's tensors, checked to be finite numbers, and what each is.

    Raises:
        DogeExportError: there is no adapter_model.safetensors or it is damaged or empty; a tensor is no
            floating point one, is not finite, is there twice, or has a name that means nothing to PEFT.
    """
    parts: dict[tuple[str, str], Part] = {}
    for name, value in _tensors(folder):
        owner, role = _meaning(name, folder)
        if (owner, role) in parts:
            raise DogeExportError(
                f"{folder} holds one matrix twice, as {parts[owner, role].name!r} and as {name!r}.",
                "Remove the one that is not of this adapter.",
            )
        if not np.isfinite(value).all():
            raise DogeExportError(
                f"{name} in {folder} is not finite: it holds NaN or infinity.",
                "Its training has failed: give an earlier checkpoint of it.",
            )
        parts[owner, role] = Part(name, owner, role, value)
    if not parts:
        raise DogeExportError(f"{folder / _WEIGHTS} holds no tensor.", "Download it again, or train it.")
    return list(parts.values())


def _meaning(name: str, folder: Path) -> tuple[str, str]:
    short = name.removeprefix(_PREFIX)
    if short == name or short.startswith(_PREFIX):
        raise DogeExportError(
            f"{folder} holds {name!r}, and PEFT's names begin with {_PREFIX!r} once: it would leave the "
            "tensor out.",
            f"Rename its tensors to begin with {_PREFIX!r}, as PEFT's save_pretrained does.",
        )
    for end, role in _ENDS.items():
        if match := re.fullmatch(f"(.+){end}", short):
            return match[1], role
    if "lora_" in short or "trainable_tokens" in short or "modules_to_save." in short:
        raise DogeExportError(
            f"{folder} holds {name!r}, which is not a matrix of plain LoRA.",
            "Save the adapter with PEFT's save_pretrained, or merge it with PEFT's merge_and_unload and "
            "export the result.",
        )
    return short, "whole"


def _tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    import ml_dtypes  # noqa: F401 - by it numpy knows bfloat16
    from safetensors import SafetensorError, safe_open

    path = folder / _WEIGHTS
    if not is_there(path):
        pickled = (folder / "adapter_model.bin").is_file()
        raise DogeExportError(
            f"{folder} holds a pickled adapter only, which is never loaded."
            if pickled
            else f"{folder} has no {_WEIGHTS}.",
            "Save it with PEFT's save_pretrained(..., safe_serialization=True).",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise DogeExportError(
                        f"{name} in {folder} is {dtype}, and an adapter's numbers are float32, float16 or "
                        "bfloat16.",
                        "Save the adapter with PEFT's save_pretrained in one of them.",
                    )
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, OverflowError):
        check_content(path, "safetensors")
        raise DogeExportError(
            f"{path} is truncated or not a safetensors file.", "Download it again."
        ) from None
