"""The folder an export writes: model, configuration, tokenizer, and a manifest with a hash of every file."""

__all__ = [
    "DECODE",
    "DEPLOYMENT",
    "ENGINE_MANIFEST",
    "MANIFEST",
    "PLUGINS",
    "Bundle",
    "CacheSpec",
    "DecodeSpec",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "check_output",
    "hash_files",
    "new_folder",
    "verify_files",
    "write_manifest",
]

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from doge_export.config import DogeConfig
from doge_export.decision import Decision
from doge_export.errors import DogeExportError
from doge_export.generations import CURRENT
from doge_export.json_file import read_object

_log = logging.getLogger(__name__)

#: The manifest's name.
MANIFEST = "doge_export.json"
#: What is in its place in the folder of an engine (doge_export.tensorrt.folder).
ENGINE_MANIFEST = "doge_engine.json"
_MODEL = "model.onnx"
#: The graph that gives the best tokens in the place of all logits, where the target has one.
DECODE = "decode.onnx"
#: What says of a folder that `deploy` wrote it.
DEPLOYMENT = "doge_deploy.json"
#: The graph with nodes of doge_export.triton's plugins, where there is one.
PLUGINS = "plugins.onnx"
_FORMAT = 1
_EXPORT_AGAIN = "Export the model again."


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph; a symbolic dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CacheSpec:
    """How the graph's cache works: its kind, its shape, and the names that carry it in and out. `slots`: the
    most a bounded one ever has. `dt_heads`: rows of dt, where those are not kv_heads.

    `inputs` and `outputs` are in the same order: output i becomes input i of the next step.
    """

    kind: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    max_length: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: int | None = None
    dt_heads: int | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """A second graph with the weights of the first. In the place of `logits` it gives `token_ids` and
    `token_logits` [batch, count]: the best tokens of the last position, best first, ties by the lower id.
    Its cache is of fixed buffers; without max_length, of any number of slots."""

    file: str
    count: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: CacheSpec


@dataclass(frozen=True)
class FileEntry:
    """What a file was when the bundle was written."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """`doge_export.json`, decoded and checked. `decode`: None where there is no such graph. `generation`:
    which the model is of and what decided it ; None in older bundles."""

    format: int
    doge_export: str
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: CacheSpec
    call: str
    files: Mapping[str, FileEntry] = field(repr=False)
    decode: DecodeSpec | None = None
    generation: Decision | None = None

    @classmethod
    def from_dict(cls, raw: Any) -> "Manifest":
        """Check a decoded manifest.

        Raises:
            DogeExportError: it is of another format, or something is missing from it.
        """
        found = raw.get("format") if isinstance(raw, dict) else None
        if not isinstance(found, int):
            raise DogeExportError(f"{MANIFEST} is not a bundle's manifest.", _EXPORT_AGAIN)
        if found != _FORMAT:
            raise DogeExportError(
                f"The bundle has format {found}, and this version reads format {_FORMAT}.",
                "Use the doge-export that wrote it, or export the model again.",
            )
        try:
            return cls(
                format=found,
                doge_export=raw["doge_export"],
                versions=dict(raw["versions"]),
                options=dict(raw["options"]),
                inputs=_tensors(raw["graph"]["inputs"]),
                outputs=_tensors(raw["graph"]["outputs"]),
                cache=_cache(raw["cache"]),
                call=raw["call"],
                files={
                    _plain_name(name): FileEntry(str(entry["sha256"]), int(entry["bytes"]))
                    for name, entry in raw["files"].items()
                },
                decode=_decode(raw.get("decode")),
                generation=Decision.from_dict(raw["generation"]) if "generation" in raw else None,
            )
        except KeyError as error:
            raise DogeExportError(f"{MANIFEST} lacks {error.args[0]!r}.", _EXPORT_AGAIN) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DogeExportError(f"{MANIFEST} is damaged: {error}.", _EXPORT_AGAIN) from None


def _tensors(raw: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in raw)


def _decode(raw: Any) -> DecodeSpec | None:
    if raw is None:
        return None
    inputs, outputs = _tensors(raw["inputs"]), _tensors(raw["outputs"])
    return DecodeSpec(_plain_name(raw["file"]), int(raw["count"]), inputs, outputs, _cache(raw["cache"]))


def _cache(raw: Any) -> CacheSpec:
    optional = ("slots", "dt_heads")
    values = {key: raw[key] for key in CacheSpec.__dataclass_fields__ if key not in optional or key in raw}
    values["inputs"], values["outputs"] = tuple(values["inputs"]), tuple(values["outputs"])
    return CacheSpec(**values)


def _plain_name(name: str) -> str:
    """A manifest may come from anywhere; it must not make us read files outside the bundle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} is not a file of the bundle")
    return name


@dataclass(frozen=True)
class Bundle:
    """A folder that `export` wrote, opened."""

    path: Path
    manifest: Manifest
    config: DogeConfig

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Read the manifest and the configuration, and see that the files the model needs are there.

        Raises:
            DogeExportError: the folder is missing, is no bundle, is of another format, or lacks a file.
        """
        path = Path(path)
        if not path.is_dir():
            what = "is a file, not a bundle" if path.exists() else "does not exist"
            raise DogeExportError(f"{path} {what}.", "Give the folder that doge-export export wrote.")
        try:
            raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DogeExportError(
                f"{path} is not a bundle: it has no {MANIFEST}.",
                "Give the folder that doge-export export wrote.",
            ) from None
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
            raise DogeExportError(f"{path / MANIFEST} cannot be read: {error}.", _EXPORT_AGAIN) from None
        manifest = Manifest.from_dict(raw)
        needed = {_MODEL, *(name for name in manifest.files if name.startswith(_MODEL))}
        if manifest.decode is not None:
            needed.add(manifest.decode.file)
        for name in sorted(needed):
            if not (path / name).is_file():
                raise DogeExportError(f"{path} lacks {name}.", "Copy the whole folder, or export again.")
        generation = str(manifest.options.get("generation", CURRENT))
        return cls(path, manifest, DogeConfig.from_file(path / "config.json", generation))

    @property
    def compiled(self) -> bool:
        """Whether TensorRT made an engine of the graph: doge_export.tensorrt.Engine."""
        return False

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Every file of the folder but its manifest, as it was written."""
        return self.manifest.files

    @property
    def model_path(self) -> Path:
        """The graph; its weights may lie beside it."""
        return self.path / _MODEL

    @property
    def decode_path(self) -> Path | None:
        """The graph that gives the best tokens alone, if there is one."""
        return None if self.manifest.decode is None else self.path / self.manifest.decode.file

    @property
    def plugins_path(self) -> Path | None:
        """The graph with plugins, if there is one; it reads the weights of the other."""
        return self.path / PLUGINS if PLUGINS in self.manifest.files else None

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            DogeExportError: naming the first file that is missing, truncated or changed.
        """
        verify_files(self.path, self.files, _EXPORT_AGAIN)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the model, such as generation_config.json; empty where there is none.

        Raises:
            DogeExportError: the file is there and holds no JSON object.
        """
        return read_object(self.path / name)


def verify_files(folder: Path, files: Mapping[str, FileEntry], remedy: str) -> None:
    """Compare the files of `folder` with what they were.

    Raises:
        DogeExportError: naming the first file that is missing, truncated or changed.
    """
    for name, entry in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            digest = _sha256(path) if size == entry.bytes else ""
        except FileNotFoundError:
            raise DogeExportError(f"{path} is missing.", remedy) from None
        except OSError as error:
            raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from error
        if size < entry.bytes:
            raise DogeExportError(
                f"{path} is truncated: it has {size} of {entry.bytes} bytes.", f"Copy it again. {remedy}"
            )
        if digest != entry.sha256:
            raise DogeExportError(f"{path} was changed: its sha256 is not the manifest's.", remedy)


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> sha256 and bytes of every file of `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in paths
    }


def write_manifest(
    folder: Path,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    graph: Mapping[str, Any],
    cache: Mapping[str, Any],
    call: str,
    decode: Mapping[str, Any] | None = None,
    generation: Decision | None = None,
) -> Manifest:
    """Hash every file of `folder` and write `doge_export.json` beside them.

    The same files and arguments give the same bytes: there is no time and no path in it.
    """
    from doge_export import __version__

    (folder / MANIFEST).unlink(missing_ok=True)
    raw: dict[str, Any] = {
        "format": _FORMAT,
        "doge_export": __version__,
        "versions": dict(versions),
        "options": dict(options),
        "graph": dict(graph),
        "cache": dict(cache),
        "call": call,
        "files": hash_files(folder),
    }
    if decode is not None:
        raw["decode"] = dict(decode)
    if generation is not None:
        raw["generation"] = generation.to_dict()
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    manifest = Manifest.from_dict(json.loads(text))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_folder(output: Path, force: bool = False) -> Generator[Path]:
    """A temporary folder that becomes `output` when the block ends well, and vanishes when it does not.

    With `force` an older `output` is moved away only once the new folder is whole, so that there is no
    moment without a good one.

    Raises:
        DogeExportError: `output` exists already (without `force`), is nothing that this tool wrote, or
            cannot be written: no permission, no room, a file where a folder should be.
    """
    given, output = output, output.resolve()
    check_output(output, force)
    token = secrets.token_hex(4)
    partial = output.with_name(f".{output.name}.{token}.partial")
    try:
        _make_parents(output)
        try:  # first: a signal may come as soon as the folder is there
            partial.mkdir()  # not tempfile.mkdtemp, which hides the folder from everybody else
            yield partial
            _swap(partial, output, output.with_name(f".{output.name}.{token}.old"), force)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise _sentence(given, error) from error
    except Exception as error:
        # safetensors and torch write with their own code and raise their own exceptions for it.
        if os.strerror(errno.ENOSPC) in str(error) and not isinstance(error, DogeExportError):
            raise _sentence(given, OSError(errno.ENOSPC, "")) from error
        raise


def _make_parents(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = error.filename or output.parent
        raise DogeExportError(
            f"{output} cannot be written: {place} is a file.", "Name a folder with -o."
        ) from error


def check_output(output: Path, force: bool = False) -> None:
    """Raise DogeExportError where `new_folder` would refuse `output` at once."""
    if not output.exists():
        return
    if not output.is_dir():
        raise DogeExportError(f"{output} is a file.", "Name a folder with -o.")
    if not force:
        raise DogeExportError(f"{output} exists already.", "Pass --force to replace it.")
    # --force must not be able to delete a home directory.
    ours = (MANIFEST, DEPLOYMENT, "config.json")
    if any(output.iterdir()) and not any((output / name).is_file() for name in ours):
        raise DogeExportError(
            f"{output} holds none of {', '.join(ours)}, so it is not replaced.",
            "Name another folder with -o, or remove this one yourself.",
        )


def _swap(partial: Path, output: Path, old: Path, force: bool) -> None:
    if not (force and output.exists()):
        partial.rename(output)
        return
    output.rename(old)
    try:
        partial.rename(output)
    except BaseException:
        old.rename(output)
        raise
    try:
        shutil.rmtree(old)
    except OSError as error:
        _log.warning("%s is replaced, but the old one stays in %s: %s.", output, old, error.strerror)


def _sentence(output: Path, error: OSError) -> DogeExportError:
    if error.errno == errno.ENOSPC:
        return DogeExportError(
            f"{output} cannot be written: no space is left on the device.",
            "Free some space, or name a folder on another disk with -o.",
        )
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return DogeExportError(
            f"{output} was created by somebody else meanwhile.", "Name another one with -o."
        )
    where = f" ({error.filename})" if error.filename and str(output) not in str(error.filename) else ""
    return DogeExportError(f"{output} cannot be written: {error.strerror or error}{where}.")
