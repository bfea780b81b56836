"""`doge-export verify`: whether a bundle is what was written, certified, and what its checkpoint gives."""

__all__ = ["command"]

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json

if TYPE_CHECKING:
    from doge_export.export.reproduce import Rebuilt


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--certificate", type=click.Path(path_type=Path), metavar="FILE",
              help="What validate --json wrote: it must be of these files, and have passed.")  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Export again by the bundle's recipe and compare every byte.")
@click.option("--reference", metavar="MODEL",
              help="What to rebuild from: a folder, a fixture's name, or a hub id.")  # fmt: skip
@click.option("--adapter", type=click.Path(path_type=Path), help="The LoRA adapter it was exported with.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write what was found as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    certificate: Path | None,
    rebuild: bool,
    reference: str | None,
    adapter: Path | None,
    json_to: str | None,
) -> None:
    """Hold the files of BUNDLE, or of an engine, to its manifest. Exit code 1 where a certificate or a second
    export says otherwise, 2 where a file is not what was written, or is read where the model runs and not in
    the manifest.

    \b
    doge-export verify out/doge-tiny --certificate report.json
    doge-export verify out/doge-tiny --rebuild --reference doge-tiny
    """
    from doge_export.core.errors import DogeExportError
    from doge_export.render import certificate_faults
    from doge_export.runtime import open_folder

    _check_options(rebuild, reference, adapter)
    opened = open_folder(bundle)
    if rebuild and opened.compiled:
        raise DogeExportError(
            f"{bundle} is an engine, which no export writes.", "Rebuild the bundle it was built from."
        )
    others = opened.verify()
    report: dict[str, Any] = {"files": len(opened.files), "findings": [], "others": others}
    lines = [f"{len(opened.files)} files are what the {'build' if opened.compiled else 'export'} wrote"]
    if others:
        lines.append(f"not of it, and read by nothing: {', '.join(others)}")
    if certificate is not None:
        faults = certificate_faults(certificate, opened)
        report["findings"] += faults
        lines += faults or [f"{certificate} is of these files, and says that they passed"]
    if reference is not None:
        from doge_export.export import reproduce

        with show_progress("Rebuilding") as progress:
            rebuilt = reproduce.rebuild(opened, reference, adapter, progress)
        report["rebuilt"] = {"differing": rebuilt.differing, "versions": rebuilt.versions}
        lines.append(_rebuilt_line(rebuilt, reference))
        if not rebuilt.same:
            report["findings"].append(lines[-1])
    if json_to is not None:
        write_json(report, json_to)
    if json_to != "-":
        for line in lines:
            click.echo(line)
    if report["findings"]:
        ctx.exit(1)


def _check_options(rebuild: bool, reference: str | None, adapter: Path | None) -> None:
    from doge_export.core.errors import DogeExportError

    if rebuild != (reference is not None):
        raise DogeExportError(
            "--rebuild exports --reference MODEL again, and so they belong together.", "Give both, or none."
        )
    if adapter is not None and not rebuild:
        raise DogeExportError("--adapter is merged by --rebuild alone.", "Give --rebuild too.")


def _rebuilt_line(rebuilt: "Rebuilt", reference: str) -> str:
    """The sentence that says whether the second export gave the same bytes."""
    if rebuilt.same:
        return f"rebuilt from {reference}: {rebuilt.files} files, the same bytes"
    others = [f"{name} {one}, here {two}" for name, (one, two) in rebuilt.versions.items()]
    why = f"; written with {'; '.join(others)}" if others else ""
    return f"rebuilt from {reference}: other bytes in {', '.join(rebuilt.differing)}{why}"
