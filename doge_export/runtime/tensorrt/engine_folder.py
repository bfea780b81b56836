"""The folder that build-engine writes: the engine, what its session needs, and a manifest with hashes."""

__all__ = ["ENGINE", "Engine", "write_engine_folder"]

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.bundle import (
    ENGINE,
    ENGINE_MANIFEST,
    MANIFEST,
    Bundle,
    FileEntry,
    Manifest,
    check_coverage,
    file_entries,
    hash_files,
)
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT
from doge_export.core.json_file import member, read_json
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.runtime.tensorrt.kinds import Opened
from doge_export.runtime.tensorrt.profiles import Profile

_FORMAT = 1
_BUILD_AGAIN = "Build it again with doge-export build-engine."


@dataclass(frozen=True)
class Engine(Bundle):
    """A folder that `build-engine` wrote, opened: a bundle with an engine in the place of its graph.
    `manifest` is that of the bundle it was built from, with names and shapes of inputs and outputs.

    `runtime` and `version`: of the TensorRT that built it, which is the one that runs it. `capabilities`: of
    the GPUs it was built for."""

    runtime: str
    version: str
    capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    hashes: Mapping[str, FileEntry]

    @classmethod
    def open(cls, path: Path | str) -> "Engine":
        """Read the manifest and the configuration.

        Raises:
            DogeExportError: the folder is missing or no engine's, is of another format, or lacks a file.
        """
        path = Path(path)
        try:
            raw = read_json(path / ENGINE_MANIFEST, unique=True, remedy=_BUILD_AGAIN)
        except FileNotFoundError:
            raise DogeExportError(
                f"{path} is no engine: it has no {ENGINE_MANIFEST}.",
                "Give the folder that doge-export build-engine wrote.",
            ) from None
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
            raise DogeExportError(
                f"{path / ENGINE_MANIFEST} is not of the format that this version reads.", _BUILD_AGAIN
            )
        try:
            manifest = Manifest.from_dict(raw["bundle"])
            generation = manifest.options.generation or CURRENT
            runtime = member(raw, "runtime", dict)
            engine = cls(
                path,
                manifest,
                DogeConfig.from_file(path / "config.json", generation),
                member(runtime, "kind", str),
                member(runtime, "version", str),
                tuple(map(str, member(runtime, "compute_capabilities", list))),
                tuple(map(_profile, member(raw, "profiles", list))),
                file_entries(raw),
            )
        except (KeyError, ValueError) as error:
            raise DogeExportError(f"{path / ENGINE_MANIFEST} is damaged: {error}.", _BUILD_AGAIN) from None
        if not all("input_ids" in profile.inputs for profile in engine.profiles) or not engine.profiles:
            raise DogeExportError(
                f"{path / ENGINE_MANIFEST} is damaged: no profile, or one without input_ids.", _BUILD_AGAIN
            )
        if not engine.model_path.is_file():
            raise DogeExportError(f"{path} lacks {ENGINE}.", "Copy the whole folder, or build it again.")
        return engine

    @property
    def compiled(self) -> bool:
        """True: an engine is compiled."""
        return True

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """The files of the engine's own folder."""
        return self.hashes

    @property
    def model_path(self) -> Path:
        """The file that TensorRT deserializes."""
        return self.path / ENGINE

    @property
    def max_batch(self) -> int:
        """The most rows of a call."""
        return min(profile.inputs["input_ids"][-1][0] for profile in self.profiles)

    def verify(self) -> list[str]:
        """See Bundle.verify."""
        return check_coverage(self.path, ENGINE_MANIFEST, self.hashes, (ENGINE, "config.json"), _BUILD_AGAIN)


def _profile(raw: Any) -> Profile:
    inputs = {}
    for name, sizes in member(raw, "inputs", dict).items():
        whole = isinstance(sizes, list) and len(sizes) == 3 and all(isinstance(each, list) for each in sizes)
        if not whole or not all(type(size) is int and size >= 0 for each in sizes for size in each):
            raise ValueError(f"the profile's {name} is not of three shapes")
        inputs[name] = (tuple(sizes[0]), tuple(sizes[1]), tuple(sizes[2]))
    if "input_ids" in inputs and len(inputs["input_ids"][-1]) != 2:
        raise ValueError("the profile's input_ids are not [batch, sequence]")
    return Profile(member(raw, "name", str), inputs)


def write_engine_folder(
    folder: Path,
    source: Bundle,
    opened: Opened,
    capabilities: Sequence[str],
    shapes: Sequence[Profile],
) -> None:
    """Write the files of `source` that text needs, and the manifest, beside the engine that lies in
    `folder`."""
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(source.path / name, folder / name)
    copy_tokenizer_files(source.path, folder)
    raw: dict[str, Any] = {
        "format": _FORMAT,
        "runtime": {
            "kind": opened.kind.name,
            "version": str(opened.trt.__version__),
            "compute_capabilities": list(capabilities),
        },
        "profiles": [{"name": profile.name, "inputs": profile.inputs} for profile in shapes],
        "bundle": read_json(source.path / MANIFEST),
        "files": hash_files(folder),
    }
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / ENGINE_MANIFEST).write_text(text, encoding="utf-8")
