"""`doge-export doctor`: what this machine can run."""

__all__ = ["command"]

from dataclasses import asdict
from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json

_SIGNS = {"ok": "ok", "note": "--", "problem": "!!"}


@click.command("doctor")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "json_to", metavar="FILE|-", help="Write it as JSON.")
@click.pass_context
def command(ctx: click.Context, bundle: Path | None, json_to: str | None) -> None:
    """Look at what is installed here, and try to load BUNDLE in each runtime. Exit code 1 where something is
    wrong.

    \b
    doge-export doctor
    doge-export doctor out/doge-tiny
    """
    from doge_export.inspection.doctor import examine, examine_bundle

    findings = examine()
    if bundle is not None:
        with show_progress("Loading") as progress:
            findings += examine_bundle(bundle, progress)
    passed = all(one.state != "problem" for one in findings)
    if json_to is not None:
        write_json({"passed": passed, "findings": [asdict(one) for one in findings]}, json_to)
    if json_to != "-":
        width = max(len(one.name) for one in findings)
        for one in findings:
            click.echo(f"{_SIGNS[one.state]}  {one.name.ljust(width)}  {one.detail}")
            if one.remedy:
                click.echo(f"    {' ' * width}  {one.remedy}")
    if not passed:
        ctx.exit(1)
