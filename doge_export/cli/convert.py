"""`doge-export convert`: a checkpoint in transformers' format."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json
from doge_export.core.generations import GENERATIONS


@click.command("convert")
@click.option("-m", "--model", required=True, help="A checkpoint folder, a fixture's name, or a hub id.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--generation", metavar="NAME",
              help="Of which generation the checkpoint is, where it does not show: "
              f"{', '.join(GENERATIONS)}.")  # fmt: skip
@click.option("--adapter", type=click.Path(path_type=Path), help="Merge this LoRA adapter.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write a summary as JSON.")
def command(
    model: str,
    output: Path,
    generation: str | None,
    adapter: Path | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Write a checkpoint as transformers writes it: its names, one file, no keys of earlier formats. Says why
    where a generation cannot be written so.

    \b
    doge-export convert -m path/to/renamed -o out/current
    doge-export convert -m path/to/Doge-20M --adapter path/to/lora -o out/merged
    """
    from doge_export.export.convert import convert

    with show_progress("Converting") as progress:
        summary = convert(
            model,
            output,
            generation=generation,
            adapter=adapter,
            force=force,
            progress=progress,
        )
    if json_to is not None:
        write_json(summary, json_to)
    if json_to != "-":
        click.echo(
            f"{output}: {summary['parameters'] / 1e6:.2f} M parameters, {summary['renamed']} tensors "
            f"renamed, {summary['merged']} merged with an adapter"
        )
