"""A checkpoint folder as transformers writes it: config.json and safetensors, one file or shards.

Only safetensors are read, memory-mapped; a pickle is never opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint"]

_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: every tensor's file, shape and dtype are known and every file is whole."""

    folder: Path
    config: DogeConfig
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read config.json and the headers of all shards.

        Raises:
            DogeExportError: no safetensors, a shard missing or truncated, a dtype that is not a
                floating point one, or a config that is not supported.
        """
        if not folder.is_dir():
            raise DogeExportError(f"{folder} is not a folder.", "Give a checkpoint folder.")
        config = DogeConfig.from_file(folder / "config.json")
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        shards, index = _shards(folder)
        for shard in shards:
            for name, (dtype, shape) in _header(shard).items():
                if dtype not in _DTYPES:
                    raise DogeExportError(
                        f"{name} in {shard} is {dtype}, and only float32, float16 and bfloat16 weights "
                        "can be read.",
                        "Export the unquantized checkpoint.",
                    )
                files[name], shapes[name], dtypes[name] = shard, shape, dtype
        for name, shard in index.items():
            if files.get(name) != shard:
                raise DogeExportError(
                    f"The index of {folder} says that {shard.name} holds {name!r}, and it does not.",
                    "Download the checkpoint again.",
                )
        return cls(folder, config, files, shapes, dtypes)

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor, as a view of the mapped file."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _shards(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files that hold the weights, and what the index says of each tensor."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        try:
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
            placed = {tensor: folder / file for tensor, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DogeExportError(f"{index} is not a safetensors index.") from None
        if any(Path(name).name != name or len(name) > 255 for name in names):
            raise DogeExportError(f"{index} names a file outside its folder.")
        for name in names:
            if not (folder / name).is_file():
                raise DogeExportError(
                    f"{folder} lacks the shard {name}, which its index names.", "Download it again."
                )
        return [folder / name for name in names], placed
    if single.is_file():
        return [single], {}
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise DogeExportError(
            f"{folder} holds pickled weights only, which are never loaded.",
            "Convert them with transformers: from_pretrained(...).save_pretrained(..., "
            "safe_serialization=True).",
        )
    raise DogeExportError(f"{folder} holds no model.safetensors.", "Give a folder with weights.")


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor -> dtype and shape. The library checks offsets, shapes and the length of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (SafetensorError, ValueError, OverflowError):
        raise DogeExportError(
            f"{path} is truncated or not a safetensors file.", "Download it again."
        ) from None
