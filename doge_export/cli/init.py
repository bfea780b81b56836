"""`doge-export init`: a random checkpoint of a published or changed shape."""

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json
from doge_export.core.generations import GENERATIONS


def _show_list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        _print_table()
        ctx.exit()


@click.command("init")
@click.argument("preset", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change the configuration; the value is JSON. Repeatable.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
              show_default=True)  # fmt: skip
@click.option("--generation", metavar="NAME", default="4", show_default=True,
              help=f"Of which generation of Doge: {', '.join(GENERATIONS)}.")  # fmt: skip
@click.option("--from-dense", metavar="MODEL",
              help="Not a preset, but this dense checkpoint with experts beside its MLPs, which add nothing "
              "until they are trained.")  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Copy the tokenizer of this folder.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write a summary as JSON.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_show_list,
              help="Show the presets and exit.")  # fmt: skip
def command(
    preset: str | None,
    output: Path | None,
    seed: int,
    settings: tuple[str, ...],
    dtype: str,
    generation: str,
    from_dense: str | None,
    tokenizer: Path | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Write a random checkpoint in transformers' format, or in that of an earlier generation, A randomised.

    PRESET is a published size such as Doge-20M; `init list` shows them all.

    \b
    doge-export init Doge-20M -o out/random
    doge-export init Doge-20M -o out/small --set num_hidden_layers=2 --set keep_window_size=128
    doge-export init Doge-60M -o out/plain --set rope_parameters.rope_type=default
    doge-export init Doge-20M -o out/december --generation 2
    doge-export init --from-dense doge-tiny -o out/moe --set num_experts=1024 --set num_experts_per_tok=16
    """
    from doge_export.core.config import DogeConfig
    from doge_export.core.tensor_shapes import parameter_count
    from doge_export.export.init import init, preset_config

    if preset == "list":
        _print_table()
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if (preset is None) == (from_dense is None):
        raise click.UsageError("Give a PRESET or --from-dense MODEL.")
    if from_dense is not None:
        _add_experts(from_dense, output, seed, settings, force, json_to)
        return
    assert preset is not None
    config = DogeConfig.from_dict(preset_config(preset, settings, generation), generation)
    with show_progress(f"Drawing {preset}", total=parameter_count(config)) as progress:
        summary = init(
            preset,
            output,
            seed=seed,
            settings=settings,
            dtype=dtype,
            generation=generation,
            tokenizer=tokenizer,
            force=force,
            progress=progress,
        )
    if json_to is not None:
        write_json(summary, json_to)
    if json_to != "-":
        click.echo(
            f"{output}: {summary['preset']}, {summary['parameters'] / 1e6:.2f} M random parameters, {dtype}"
        )


def _add_experts(
    dense: str, output: Path, seed: int, settings: tuple[str, ...], force: bool, json_to: str | None
) -> None:
    from doge_export.export.convert import add_experts

    with show_progress("Adding experts") as progress:
        summary = add_experts(dense, output, seed=seed, settings=settings, force=force, progress=progress)
    if json_to is not None:
        write_json(summary, json_to)
    if json_to != "-":
        click.echo(f"{output}: {summary['parameters'] / 1e6:.2f} M parameters, experts beside {dense}")


def _print_table() -> None:
    from doge_export.core import presets
    from doge_export.core.tensor_shapes import parameter_count

    rows: list[tuple[Any, ...]] = [("preset", "parameters", "vocab", "hidden", "layers", "heads", "experts")]
    for name in presets.names():
        config = presets.load(name)
        rows.append(
            (
                name,
                f"{parameter_count(config) / 1e6:.2f} M",
                config.vocab_size,
                config.hidden_size,
                config.num_hidden_layers,
                f"{config.num_attention_heads}/{config.num_key_value_heads}",
                f"{config.num_experts}/{config.num_experts_per_tok}" if config.is_moe else "-",
            )
        )
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (str(cell) for cell in row)
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        click.echo("  ".join([first.ljust(widths[0]), *cells]).rstrip())
