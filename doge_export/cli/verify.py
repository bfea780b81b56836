"""`doge-export verify`: whether a bundle is what was written, certified, and what its checkpoint gives."""

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from doge_export.cli._shared import progress, write_json


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
    from doge_export.errors import DogeExportError
    from doge_export.render import certificate_faults
    from doge_export.runtime import open_folder

    if rebuild != (reference is not None):
        raise DogeExportError(
            "--rebuild exports --reference MODEL again, and so they belong together.", "Give both, or none."
        )
    if adapter is not None and not rebuild:
        raise DogeExportError("--adapter is merged by --rebuild alone.", "Give --rebuild too.")
    opened = open_folder(bundle)
    if rebuild and opened.compiled:
        raise DogeExportError(
            f"{bundle} is an engine, which no export writes.", "Rebuild the bundle it was built from."
        )
    others = opened.verify()
    found: dict[str, Any] = {"files": len(opened.files), "findings": [], "others": others}
    lines = [f"{len(opened.files)} files are what the {'build' if opened.compiled else 'export'} wrote"]
    if others:
        lines.append(f"not of it, and read by nothing: {', '.join(others)}")
    if certificate is not None:
        faults = certificate_faults(certificate, opened)
        found["findings"] += faults
        lines += faults or [f"{certificate} is of these files, and says that they passed"]
    if rebuild:
        from doge_export.rebuild import rebuild as again

        assert reference is not None
        with progress("Rebuilding") as advance:
            made = again(
                opened, reference, lambda steps, stage: advance(steps, f"Rebuilding: {stage}"), adapter
            )
        found["rebuilt"] = {"differing": made.differing, "versions": made.versions}
        if made.same:
            lines.append(f"rebuilt from {reference}: {made.files} files, the same bytes")
        else:
            others = [f"{name} {one}, here {two}" for name, (one, two) in made.versions.items()]
            why = f"; written with {'; '.join(others)}" if others else ""
            sentence = f"rebuilt from {reference}: other bytes in {', '.join(made.differing)}{why}"
            found["findings"].append(sentence)
            lines.append(sentence)
    if json_to is not None:
        write_json(found, json_to)
    if json_to != "-":
        for line in lines:
            click.echo(line)
    if found["findings"]:
        ctx.exit(1)
