"""A checkpoint folder as transformers writes it: config.json and safetensors, one file or shards.

Only safetensors are read, memory-mapped; a pickle is never opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.candidates import Candidates, find_candidates
from doge_export.config import DogeConfig, known_keys, read_config
from doge_export.errors import DogeExportError
from doge_export.generations import canonical_names

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Checkpoint"]

#: `weights_only` runs nothing of the file; a clone of each, since safetensors stores no tensor twice.
_CONVERT = (
    'python -c "import glob, torch, safetensors.torch as s; s.save_file({{k: v.clone() for f in '
    "glob.glob('{folder}/pytorch_model*.bin') for k, v in torch.load(f, weights_only=True).items()}}, "
    "'{folder}/model.safetensors')\""
)
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: every tensor's file, shape and dtype are known and every file is whole.

    Tensors go by the names that transformers gives them; `stored` has those in the file.
    """

    folder: Path
    config: DogeConfig
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    stored: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, generation: str | None = None) -> "Checkpoint":
        """Read config.json and the headers of all shards. Of which `generation` it is they say, unless it is
        given.

        Raises:
            DogeExportError: no safetensors, a shard missing or truncated, a dtype that is not a
                floating point one, a config that is not supported, or two generations fit.
        """
        raw, files, shapes, dtypes, stored = _read(folder)
        config = DogeConfig.from_dict(raw, generation or find_candidates(raw, shapes).only())
        return cls(folder, config, files, shapes, dtypes, stored)

    @staticmethod
    def candidates(folder: Path) -> Candidates:
        """The generations that the checkpoint in `folder` may be of.

        Raises:
            DogeExportError: as `open` does, but for generations that fit.
        """
        raw, _, shapes, _, _ = _read(folder)
        return find_candidates(raw, shapes)

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor, as a view of the mapped file."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(self.stored[name])
        return tensor

    def array(self, name: str) -> "npt.NDArray[Any]":
        """One tensor as numpy has it, bfloat16 as ml_dtypes does."""
        import ml_dtypes  # noqa: F401 - by it numpy knows bfloat16
        from safetensors import safe_open

        with safe_open(self.files[name], framework="numpy") as file:
            array: npt.NDArray[Any] = file.get_tensor(self.stored[name])
        return array


def _read(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Path], dict[str, tuple[int, ...]], dict[str, str], dict[str, str]]:
    """config.json, and by transformers' names the file, shape, dtype and stored name of every tensor."""
    if not folder.is_dir():
        raise DogeExportError(f"{folder} is not a folder.", "Give a checkpoint folder.")
    raw = read_config(folder / "config.json")
    known_keys(raw)
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
    stored = canonical_names(shapes)
    files = {ours: files[theirs] for ours, theirs in stored.items()}
    shapes = {ours: shapes[theirs] for ours, theirs in stored.items()}
    dtypes = {ours: dtypes[theirs] for ours, theirs in stored.items()}
    return raw, files, shapes, dtypes, stored


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
            f"Convert them: {_CONVERT.format(folder=folder)}",
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
