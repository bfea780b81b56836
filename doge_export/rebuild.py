"""Whether a bundle is what its checkpoint gives again, byte by byte."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.pipeline import export_model
from doge_export.quantize import METHODS
from doge_export.recipe import RECIPE, ExportOptions
from doge_export.temporary import temporary_folder

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
    progress: Callable[[int, str], None] = lambda steps, stage: None,
    adapter: Path | None = None,
) -> Rebuilt:
    """Export `model` (a folder, a fixture's or preset's name, a hub id) once more by the bundle's own recipe,
    the `adapter` merged where one is given, into a temporary folder, and compare the hashes.

    Raises:
        DogeExportError: the bundle is damaged, has no recipe, or was rounded with a text, which is no part
            of a recipe; or the adapter does not fit.
    """
    bundle.verify()
    recipe = bundle.path / RECIPE
    if not recipe.is_file():
        raise DogeExportError(f"{bundle.path} has no {RECIPE} to export by.", "Export the model again.")
    options = ExportOptions.resolve(recipe)
    read = [name for name in sorted(options.methods) if METHODS[name].needs_text]
    if options.stored.static or read:
        how = options.precision if options.stored.static else f"{options.precision}-{' and '.join(read)}"
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
