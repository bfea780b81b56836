"""Which files of a checkpoint folder hold the weights, by transformers' own order."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.core.checkpoint.sources.other import explain_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_json

__all__ = ["weight_files"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EXPLICIT = "transformers_weights"
#: Files of torch's distributed checkpoint, which transformers 5 takes before any other.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def weight_files(folder: Path, raw: Mapping[str, Any]) -> tuple[list[Path], dict[str, Path]]:
    """The files that hold the weights, and what the index, where there is one, says of each tensor. `raw` is
    config.json.

    A file that config.json names in transformers_weights comes first, then model.safetensors, then the index,
    which may be of an earlier save (_get_resolved_checkpoint_files in transformers' modeling_utils.py).

    Raises:
        DogeExportError: there are none, with what there is instead; or one is missing; or the index is
            damaged.
    """
    _refuse_distributed(folder)
    name = raw.get(_EXPLICIT)
    if name is None:
        name = _SINGLE if (folder / _SINGLE).is_file() else _INDEX
    else:
        _check_explicit(folder, name)
    path = folder / name
    if not path.is_file():
        raise explain_folder(folder) or DogeExportError(
            f"{folder} holds no model.safetensors.", "Give a folder with weights."
        )
    return _of_index(folder, path) if str(name).endswith(".json") else ([path], {})


def _check_explicit(folder: Path, name: Any) -> None:
    """Hold the name in config.json to what transformers asks of it."""
    says = f"config.json names {name!r} as {_EXPLICIT}"
    remedy = f"Name a file of the folder, or remove {_EXPLICIT} from config.json."
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise DogeExportError(f"{says}, which is neither a safetensors file nor the index of one.", remedy)
    if not _inside(name):
        raise DogeExportError(f"{says}, which is no file of {folder}.", remedy)
    if not (folder / name).is_file():
        raise DogeExportError(f"{says}, and {folder} has no such file.", remedy)


def _inside(name: str) -> bool:
    """Whether the name is that of a file in the folder or below."""
    normal = os.path.normpath(name)
    return (
        bool(name)
        and "\0" not in name
        and all(len(part) <= 255 for part in Path(name).parts)
        and not Path(name).is_absolute()
        and normal not in (os.curdir, os.pardir)
        and not normal.startswith(os.pardir + os.sep)
    )


def _of_index(folder: Path, index: Path) -> tuple[list[Path], dict[str, Path]]:
    """The shards that an index names, in the order in which transformers reads them."""
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        names = sorted(set(weight_map.values()))
        placed = {tensor: folder / file for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DogeExportError(f"{index} is not a safetensors index.", "Download it again.") from None
    if not names:
        raise DogeExportError(f"{index} names no file.", "Download it again.")
    if not all(map(_inside, names)):
        raise DogeExportError(f"{index} names a file outside its folder.", "Download it again.")
    for name in names:
        if not (folder / name).is_file():
            raise DogeExportError(
                f"{folder} lacks the shard {name}, which its index names.", "Download it again."
            )
    return [folder / name for name in names], placed


def _refuse_distributed(folder: Path) -> None:
    name = next(
        (path.name for path in sorted(folder.glob("shard-*")) if _DISTRIBUTED.fullmatch(path.name)), None
    )
    if name is not None:
        raise DogeExportError(
            f"{folder} holds {name}, a part of a distributed checkpoint, which transformers would take.",
            "Save the model from the training with save_pretrained, which gathers the parts; or move them "
            "away if they are of an earlier run.",
        )
