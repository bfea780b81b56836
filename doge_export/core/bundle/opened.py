"""A bundle, opened."""

__all__ = ["Bundle"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.bundle.coverage import check_coverage
from doge_export.core.bundle.files import FileEntry
from doge_export.core.bundle.leftovers import kept_aside
from doge_export.core.bundle.manifest import EXPORT_AGAIN, Manifest
from doge_export.core.bundle.names import DECODE, DECODED_BY, MANIFEST, MODEL, PLUGINS
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT
from doge_export.core.json_file import read_json, read_object


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
            old = kept_aside(path)
            remedy = f"Its replacement was cut off; what it was before: mv {old} {path}" if old else _GIVE
            raise DogeExportError(f"{path} {what}.", remedy)
        try:
            raw = read_json(path / MANIFEST, unique=True, remedy=EXPORT_AGAIN)
        except FileNotFoundError:
            raise DogeExportError(f"{path} is not a bundle: it has no {MANIFEST}.", _GIVE) from None
        manifest = Manifest.from_dict(raw)
        needed = {MODEL, *(name for name in manifest.files if name.startswith(MODEL))}
        if manifest.decode is not None:
            needed.add(manifest.decode.file)
        for name in sorted(needed):
            if not (path / name).is_file():
                raise DogeExportError(f"{path} lacks {name}.", "Copy the whole folder, or export again.")
        config = DogeConfig.from_file(path / "config.json", manifest.options.generation or CURRENT)
        check_same_model(manifest, config)
        return cls(path, manifest, config)

    @property
    def compiled(self) -> bool:
        """Whether TensorRT made an engine of the graph: doge_export.engines.Engine."""
        return False

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Every file of the folder but its manifest, as it was written."""
        return self.manifest.files

    @property
    def model_path(self) -> Path:
        """The graph; its weights may lie beside it."""
        return self.path / MODEL

    @property
    def model_bytes(self) -> int:
        """The size of the model: of its graph and its weights, model.onnx and model.onnx.data. decode.onnx
        reads the same weights and does not count."""
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(MODEL))

    @property
    def decode_path(self) -> Path | None:
        """The graph that gives the best tokens alone, if there is one."""
        return None if self.manifest.decode is None else self.path / self.manifest.decode.file

    @property
    def plugins_path(self) -> Path | None:
        """The graph with plugins, if there is one; it reads the weights of the other."""
        return self.path / PLUGINS if PLUGINS in self.manifest.files else None

    @property
    def caches(self) -> str:
        """Which file has which cache, as every command says it."""
        graph = f"{self.manifest.cache.kind} cache"
        if self.manifest.decode is None:
            return graph
        decode = self.manifest.decode
        return f"{graph} of {MODEL}, {decode.cache.kind} cache of {decode.file}"

    def verify(self) -> list[str]:
        """Compare every file with the manifest, and see that all that runs is in it.

        Returns: what is in the folder besides, which nothing reads.

        Raises:
            DogeExportError: naming the first file that is missing, truncated, changed, or not in the manifest
                and read where the model runs.
        """
        return check_coverage(self.path, MANIFEST, self.files, self._needed(), EXPORT_AGAIN)

    def _needed(self) -> list[str]:
        """The files that every bundle has, and those that one of these options does."""
        options, decode = self.manifest.options, self.manifest.decode
        needed = [MODEL, "config.json"]
        if decode is not None:
            needed.append(decode.file)
        elif options.target in DECODED_BY and self.config.generation == CURRENT:
            needed.append(DECODE)
        return [*needed, PLUGINS] if options.plugins else needed

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the model, such as generation_config.json; empty where there is none.

        Raises:
            DogeExportError: the file is there and holds no JSON object.
        """
        return read_object(self.path / name)


_GIVE = "Give the folder that doge-export export wrote."


def check_same_model(manifest: Manifest, config: DogeConfig) -> None:
    """See whether the cache is one of the model that config.json describes.

    Raises:
        DogeExportError: it is not.
    """
    manifest_shape = (manifest.cache.layers, manifest.cache.kv_heads, manifest.cache.head_dim)
    config_shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    if manifest_shape != config_shape:
        raise DogeExportError(
            "The manifest's cache has {} layers of {} kv heads of {}, and config.json {} of {} of {}: they "
            "are of two models.".format(*manifest_shape, *config_shape),
            EXPORT_AGAIN,
        )
