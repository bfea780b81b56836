"""Whether a bundle is what its checkpoint gives again, byte by byte."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent
from doge_export.core.temporary import temporary_folder
from doge_export.export.options import RECIPE, ExportOptions
from doge_export.export.pipeline import export_model

__all__ = ["Rebuilt", "rebuild"]


@dataclass(frozen=True)
class Rebuilt:
    """`files` were compared; those in `differing` have other bytes, or are in one of the two only.
    `versions`: package -> its version in the bundle and here, of those that are not the same."""

    files: int
    differing: tuple[str, ...]
    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every file has the same bytes."""
        return not self.differing


def rebuild(
    bundle: Bundle,
    model: str,
    adapter: Path | None = None,
    progress: Progress = silent,
) -> Rebuilt:
    """Export `model` (a folder, a fixture's or preset's name, a hub id) once more by the bundle's own recipe,
    the `adapter` merged where one is given, into a temporary folder, and compare the hashes. `progress`
    gets what that of export_model gets.

    Raises:
        DogeExportError: the bundle is damaged, has no recipe, or was rounded with a text, which is no part
            of a recipe; or the adapter does not fit.
    """
    bundle.verify()
    recipe = bundle.path / RECIPE
    if not recipe.is_file():
        raise DogeExportError(f"{bundle.path} has no {RECIPE} to export by.", "Export the model again.")
    options = ExportOptions.resolve(recipe)
    read = sorted(str(method) for method in options.methods if method.needs_text)
    static = options.stored.static is not None
    if static or read:
        how = options.precision if static else f"{options.precision}-{' and '.join(read)}"
        raise DogeExportError(
            f"{bundle.path} was rounded with a text ({how}), which its recipe does not hold.",
            "Rebuild the bundle it was made from, and quantize that again.",
        )
    with temporary_folder() as folder:
        again = export_model(
            model, folder / "again", options, validate=False, adapter=adapter, progress=progress
        )
        manifest = again.bundle.manifest
    before, after = bundle.manifest.files, manifest.files
    differing = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    versions = {
        "doge-export": (bundle.manifest.doge_export, manifest.doge_export),
        **{
            name: (bundle.manifest.versions.get(name, "none"), manifest.versions.get(name, "none"))
            for name in {*bundle.manifest.versions, *manifest.versions}
        },
    }
    others = {name: pair for name, pair in sorted(versions.items()) if pair[0] != pair[1]}
    return Rebuilt(len({*before, *after}), tuple(differing), others)
