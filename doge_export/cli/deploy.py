"""`doge-export deploy triton`: a bundle or an engine -> a model repository of Triton Inference Server."""

__all__ = ["command"]

from dataclasses import asdict
from pathlib import Path

import click

from doge_export.cli._shared import write_json


@click.group("deploy")
def command() -> None:
    """Lay out a bundle or an engine for a server of somebody else's."""


@command.command("triton")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True)
@click.option("--backend", metavar="python|onnxruntime|tensorrt",
              help="python: text in and out; the others: tensors.  [default: python]")  # fmt: skip
@click.option("--instances", type=int, metavar="N", default=1, show_default=True,
              help="How many requests are answered at once.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the model.  [default: the folder's]")
@click.option("--threads", type=int, metavar="N",
              help="Of each instance.  [default: python: all processors shared among them]")  # fmt: skip
@click.option("--plugin", "plugins", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              metavar="FILE", help="A library with plugins of the engine. Repeatable.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write what was made as JSON.")
def _triton(
    bundle: Path,
    output: Path,
    backend: str | None,
    instances: int,
    name: str | None,
    threads: int | None,
    plugins: tuple[Path, ...],
    force: bool,
    json_to: str | None,
) -> None:
    """Write a model repository of Triton Inference Server from BUNDLE, or from the folder of an engine.

    \b
    doge-export deploy triton out/doge-tiny -o out/repository --instances 2
    out/repository/run.sh
    """
    from doge_export.deploy import deploy_triton

    deployed = deploy_triton(
        bundle,
        output,
        backend=backend,
        instances=instances,
        name=name,
        threads=threads,
        plugins=plugins,
        force=force,
    )
    if json_to is not None:
        write_json(asdict(deployed), json_to)
    if json_to != "-":
        click.echo(
            f"{deployed.path}: {deployed.name} for Triton's {deployed.backend} backend, "
            f"instances: {deployed.instances}"
        )
        click.echo(f"{deployed.command} starts it; {deployed.path / 'README.md'} says how to call it.")
