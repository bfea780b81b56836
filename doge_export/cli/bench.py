"""`doge-export bench`: how fast a bundle decodes."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._shared import progress, write_json


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", type=click.Choice(["transformers"]), help="Measure this beside it, in turns.")
@click.option("--reference", metavar="MODEL",
              help="With --against: the checkpoint, a folder, a fixture's name, or a hub id.")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(min=1), metavar="N", default=32, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=2), metavar="N", default=128, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every processor.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", default=5, show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Of the prompts."
)
@click.option("--json", "json_to", metavar="FILE|-", help="Write everything measured as JSON.")
def command(
    bundle: Path,
    against: str | None,
    reference: str | None,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    rounds: int,
    seed: int,
    json_to: str | None,
) -> None:
    """Measure greedy decoding with BUNDLE: random prompts, batch 1, end-of-text ignored.

    Rates are those of the best round, medians are in brackets. The bundle runs in a process of its own,
    without torch; what it is measured against in another, round by round in turns.

    \b
    doge-export bench out/doge-tiny --threads 2
    doge-export bench out/doge-tiny --against transformers --reference doge-tiny --json bench.json
    """
    from doge_export.bench import bench
    from doge_export.render import bench_lines

    if (against is None) != (reference is None):
        raise click.UsageError("--against transformers and --reference MODEL need each other.")
    steps = (2 if against else 1) * (rounds + 2)
    with progress("Measuring", total=steps) as advance:
        report = bench(
            bundle,
            reference,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            threads=threads,
            rounds=rounds,
            seed=seed,
            progress=lambda step: advance(1, f"Measuring: {step}"),
        )
    if json_to is not None:
        write_json(report, json_to)
    if json_to != "-":
        for line in bench_lines(report):
            click.echo(line)
