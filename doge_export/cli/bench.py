"""`doge-export bench`: how fast a bundle decodes."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", type=click.Choice(["transformers"]), help="Measure this beside it, in turns.")
@click.option("--reference", metavar="MODEL",
              help="With --against: the checkpoint, a folder, a fixture's name, or a hub id.")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(min=1), metavar="N", default=32, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=2), metavar="N", default=128, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
              help="So many at once, in slots of a pool; rates are those of all.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every processor.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", default=5, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of prompts and draws.",
)
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), metavar="T",
              help="Sample each round as well, beside greedy. 1 if only others are given.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=0), metavar="K", help="As of generate; 0 is off.")
@click.option("--top-p", type=click.FloatRange(0, 1), metavar="P", help="As of generate.")
@click.option("--min-p", type=click.FloatRange(0, 1), metavar="P", help="As of generate.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write everything measured as JSON.")
def command(
    bundle: Path,
    against: str | None,
    reference: str | None,
    prompt_tokens: int,
    new_tokens: int,
    rows: int,
    threads: int | None,
    rounds: int,
    seed: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    json_to: str | None,
) -> None:
    """Measure greedy decoding with BUNDLE: random prompts, one row or --rows, end-of-text ignored.

    Rates are those of the best round, medians are in brackets. The bundle runs in a process of its own,
    without torch; what it is measured against in another, round by round in turns.

    \b
    doge-export bench out/doge-tiny --threads 2
    doge-export bench out/doge-tiny --temperature 0.8 --top-p 0.9
    doge-export bench out/doge-tiny --rows 32 --threads 2
    doge-export bench out/doge-tiny --against transformers --reference doge-tiny --json bench.json
    """
    from doge_export.bench import bench
    from doge_export.render import bench_lines

    if (against is None) != (reference is None):
        raise click.UsageError("--against transformers and --reference MODEL need each other.")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = {name: value for name, value in given.items() if value is not None}
    if sampling:
        sampling = {"temperature": 1.0, **sampling}
    with show_progress("Measuring") as progress:
        report = bench(
            bundle,
            reference,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            rows=rows,
            threads=threads,
            rounds=rounds,
            seed=seed,
            sampling=sampling,
            progress=progress,
        )
    if json_to is not None:
        write_json(report, json_to)
    if json_to != "-":
        for line in bench_lines(report):
            click.echo(line)
