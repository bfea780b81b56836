"""A checkpoint folder as transformers writes it: config.json and safetensors, one file or shards.

Only safetensors are read, memory-mapped; a pickle is never opened.
"""

import functools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.checkpoint.candidates import Candidates, find_candidates
from doge_export.core.checkpoint.sources import check_unquantized, explain_folder, weight_files
from doge_export.core.config import DogeConfig, known_keys, read_config
from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content
from doge_export.core.generations import grouped_names, is_computed, is_doge2
from doge_export.core.tensor_shapes import EMBEDDING, HEAD

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Checkpoint", "copy_config"]

_log = logging.getLogger(__name__)
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _StoredTensor:
    """A tensor in a file: its name there, the file, and what the header says."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def same(self, other: "_StoredTensor") -> bool:
        """Whether the other one is the same tensor, byte for byte."""
        alike = (self.dtype, self.shape) == (other.dtype, other.shape)
        return alike and _array(self.file, self.name).tobytes() == _array(other.file, other.name).tobytes()


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
        given. Buffers that are computed anew are passed over.

        Raises:
            DogeExportError: no safetensors, with what there is instead; a shard missing or damaged; weights
                that are quantized or no floating point numbers; one tensor twice and not the same; a config
                that is not supported; or two generations fit.
        """
        raw, tensors = _read(folder)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config = DogeConfig.from_dict(raw, generation or find_candidates(raw, shapes).only())
        if is_doge2(raw) and config.num_attention_heads == config.num_key_value_heads:
            _warn_of_early_doge2(folder, raw.get("dynamic_mask_ratio"))
        if config.tie_word_embeddings and HEAD in tensors and EMBEDDING not in tensors:
            tensors[EMBEDDING] = tensors.pop(HEAD)  # one table, and some writers keep its other name
        return cls(
            folder,
            config,
            files={name: tensor.file for name, tensor in tensors.items()},
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            dtypes={name: tensor.dtype for name, tensor in tensors.items()},
            stored={name: tensor.name for name, tensor in tensors.items()},
        )

    @property
    def found_by_transformers(self) -> bool:
        """Whether transformers, which adds or takes away one `model.` and no more, finds every tensor."""
        return all(
            theirs in (ours, f"model.{ours}", ours.removeprefix("model."), HEAD)
            for ours, theirs in self.stored.items()
        )

    @staticmethod
    def candidates(folder: Path) -> Candidates:
        """The generations that the checkpoint in `folder` may be of.

        Raises:
            DogeExportError: as `open` does, but for generations that fit.
        """
        raw, tensors = _read(folder)
        return find_candidates(raw, {name: tensor.shape for name, tensor in tensors.items()})

    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor, as a view of the mapped file."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(self.stored[name])
        return tensor

    def array(self, name: str) -> "npt.NDArray[Any]":
        """Return one tensor as numpy has it, bfloat16 as ml_dtypes does."""
        return _array(self.files[name], self.stored[name])


@functools.cache
def _warn_of_early_doge2(folder: Path, ratio: Any) -> None:
    """Warn of a Doge2 checkpoint with as many kv heads as heads: its shapes were always the same, and what it
    computed was not."""
    if ratio:
        _log.warning(
            "%s is a Doge2 with dynamic_mask_ratio %s, which its code ignores since 7 June 2025 and is read "
            "as today's; trained before, it would be another model.",
            folder,
            ratio,
        )


def _array(path: Path, name: str) -> "npt.NDArray[Any]":
    import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by it
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        array: npt.NDArray[Any] = file.get_tensor(name)
    return array


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, _StoredTensor]]:
    """config.json, and every stored tensor by transformers' name."""
    if not folder.is_dir():
        raise DogeExportError(f"{folder} is not a folder.", "Give a checkpoint folder.")
    raw = _config(folder)
    shards, index = weight_files(folder, raw)
    stored = _stored_tensors(folder, shards, index)
    kept = {name: copies for name, copies in stored.items() if not is_computed(name)}
    check_unquantized(folder, raw, {name: copies[-1].dtype for name, copies in kept.items()})
    _check_twice(kept, index)
    return raw, _by_our_names(kept)


def copy_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy config.json into `folder`, as it is but for the name of the file that the weights were read
    from."""
    raw = dict(checkpoint.config.raw)
    if raw.pop("transformers_weights", None) is None:
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
        return
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _config(folder: Path) -> dict[str, Any]:
    """Read config.json, and check that it is that of a Doge."""
    path = folder / "config.json"
    if not path.exists():
        error = explain_folder(folder)
        if error is not None:
            raise error
    check_content(path)
    raw = read_config(path)
    known_keys(raw)
    config: dict[str, Any] = raw
    return config


def _stored_tensors(
    folder: Path, shards: list[Path], index: dict[str, Path]
) -> dict[str, list[_StoredTensor]]:
    """Name in the files -> every copy of the tensor, the one that counts last, as in transformers."""
    stored: dict[str, list[_StoredTensor]] = {}
    for shard in shards:
        for name, (dtype, shape) in _header(shard).items():
            stored.setdefault(name, []).append(_StoredTensor(name, shard, dtype, shape))
    for name, shard in index.items():
        copies = stored.get(name, [])
        if is_computed(name) or any(copy.file == shard for copy in copies):
            continue
        if not copies and name.endswith(HEAD):
            continue  # a tied one that was left out of the file, or it is missed later
        raise DogeExportError(
            f"The index of {folder} says that {shard.name} holds {name!r}, and it does not.",
            "Download the checkpoint again.",
        )
    return stored


def _check_twice(stored: dict[str, list[_StoredTensor]], index: dict[str, Path]) -> None:
    """See whether a tensor that several shards hold is the same in all, or the index names the last of
    them."""
    for name, copies in stored.items():
        wrong = [copy for copy in copies[:-1] if not copy.same(copies[-1])]
        if wrong and index.get(name) != copies[-1].file:
            raise DogeExportError(
                f"{wrong[0].file} and {copies[-1].file.name} hold two tensors {name!r}, which differ.",
                "Remove the file that is not of this checkpoint, or download it again.",
            )


def _by_our_names(stored: dict[str, list[_StoredTensor]]) -> dict[str, _StoredTensor]:
    """Every tensor by transformers' name."""
    tensors = {}
    for ours, names in grouped_names(stored).items():
        first, *others = (stored[name][-1] for name in names)
        for other in others:
            if not first.same(other):
                raise DogeExportError(
                    f"The checkpoint holds one tensor twice, as {first.name!r} and as {other.name!r}, and "
                    "they differ.",
                    "Remove the one that is not of this checkpoint.",
                )
        if first.dtype not in _DTYPES:
            raise DogeExportError(
                f"{first.name} in {first.file} is {first.dtype}, and only float64, float32, float16 and "
                "bfloat16 weights can be read.",
                "Save it as floating point numbers, or remove it if it is not of the model.",
            )
        tensors[ours] = first
    return tensors


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
        check_content(path, "safetensors")
        raise DogeExportError(
            f"{path} is truncated or not a safetensors file.", "Download it again."
        ) from None
