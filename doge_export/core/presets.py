"""The models known by name: presets (shapes without weights), trained fixtures, folders, hub repositories.

Presets and fixtures lie in `models/` of the source tree, which the wheel carries as package data.
"""

__all__ = ["config_dict", "find", "fixtures", "is_preset", "load", "models_folder", "names", "resolve_model"]

import difflib
import importlib.resources
import json
import os
import re
from pathlib import Path
from typing import Any

from doge_export.core.checkpoint.sources import embedded_adapter
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@]+))?")
#: What a checkpoint needs; everything else of a repository stays where it is.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "vocab.txt", "merges.txt", "*.model"]


def models_folder() -> Path:
    """Return the folder of the presets and fixtures of this installation."""
    return Path(str(importlib.resources.files("doge_export").joinpath("models")))


def names() -> list[str]:
    """The presets by name, the smallest hidden size first."""
    configs = {path.stem: json.loads(path.read_text("utf-8")) for path in models_folder().glob("*.json")}
    presets = {name: raw for name, raw in configs.items() if raw.get("model_type") == "doge"}
    return sorted(presets, key=lambda name: (presets[name]["is_moe"], presets[name]["hidden_size"], name))


def fixtures() -> list[str]:
    """The trained checkpoints that come with the package, by name."""
    return sorted(path.parent.name for path in models_folder().glob("*/config.json"))


def is_preset(name: str) -> bool:
    """Whether `-m name` means a preset: its name (in any case), and no folder here is called so."""
    return _find(name, names()) is not None and not Path(name).is_dir()


def find(name: str) -> str:
    """The preset's own spelling of `name`, which may be in any case.

    Raises:
        DogeExportError: there is no such preset; the message names the nearest.
    """
    known = names()
    spelling = _find(name, known)
    if spelling is None:
        raise DogeExportError(f"There is no preset {name!r}.", _did_you_mean(name, known))
    return spelling


def config_dict(name: str) -> dict[str, Any]:
    """A preset's config.json, to be changed freely.

    Raises:
        DogeExportError: there is no such preset.
    """
    raw: dict[str, Any] = json.loads((models_folder() / f"{find(name)}.json").read_text("utf-8"))
    return raw


def load(name: str) -> DogeConfig:
    """A preset's configuration.

    Raises:
        DogeExportError: there is no such preset.
    """
    return DogeConfig.from_dict(config_dict(name))


def resolve_model(name_or_path: str, adapter: Path | None = None) -> Path:
    """The checkpoint folder that `-m` means: a folder, a fixture's name or a hub id `owner/name[@revision]`.

    A folder that exists comes first. A preset has no folder: ask `is_preset` before. `adapter`: the one that
    is merged into the checkpoint.

    Raises:
        DogeExportError: nothing is there, or the hub cannot be reached or has no safetensors; or an adapter
            lies in the folder, which transformers would add to it, and is not the one that is given.
    """
    folder = _resolve(name_or_path)
    error = embedded_adapter(folder, adapter)
    if error is not None:
        raise error
    return folder


def _resolve(name_or_path: str) -> Path:
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111 - pathlib's raises for an unknown user
    if path.is_dir():
        return path
    if path.exists():
        raise DogeExportError(f"{name_or_path} is a file.", "Give the folder that holds config.json.")
    known = fixtures()
    fixture = _find(name_or_path, known)
    if fixture is not None:
        return models_folder() / fixture
    if _find(name_or_path, names()) is not None:
        raise DogeExportError(
            f"{name_or_path} is a preset, a shape without weights.",
            f"Make a random checkpoint of it: doge-export init {name_or_path} -o DIR.",
        )
    match = _HUB_ID.fullmatch(name_or_path)
    if match is not None:
        return _from_hub(match["id"], match["revision"])
    if "/" in name_or_path:
        raise DogeExportError(f"There is no folder {name_or_path}.")
    raise DogeExportError(
        f"There is no folder, fixture or preset {name_or_path!r}.",
        _did_you_mean(name_or_path, known + names()),
    )


def _find(name: str, known: list[str]) -> str | None:
    return next((item for item in known if item.lower() == name.lower()), None)


def _did_you_mean(name: str, known: list[str]) -> str:
    lowered = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.75)
    if close:
        return f"Did you mean {' or '.join(lowered[item] for item in close)}?"
    return f"There are {', '.join(known)}."


def _from_hub(repository: str, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import errors, is_offline_mode, snapshot_download

    what = repository + (f"@{revision}" if revision else "")
    no_folder = f"There is no folder {repository}, and "
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
            )
        )
    except errors.GatedRepoError:
        raise DogeExportError(
            f"The hub repository {what} is gated.", "Accept its terms there and log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise DogeExportError(
            f"{no_folder}the hub has no repository {repository} (or it is private)."
        ) from None
    except errors.RevisionNotFoundError:
        raise DogeExportError(f"The hub repository {repository} has no revision {revision!r}.") from None
    except errors.HFValidationError:
        raise DogeExportError(f"{no_folder}{repository} is not a hub id.") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, httpx2.HTTPError):
        why = "offline mode is on" if is_offline_mode() else "the hub cannot be reached"
        raise DogeExportError(
            f"{no_folder}{why}, and no whole copy of {what} lies in the cache.",
            "Give a local folder, or try again with a network.",
        ) from None
    if not any(folder.glob("*.safetensors")):
        raise DogeExportError(
            f"The hub repository {what} has no safetensors; pickled weights are never loaded.",
            f"hf download {repository} --local-dir DIR, and export -m DIR says how they are converted.",
        )
    return folder
