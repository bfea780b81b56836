"""`doge-export pareto`: which ways to store a model are worth choosing."""

__all__ = ["command"]

import shutil
from pathlib import Path
from typing import Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json, write_text


@click.command("pareto")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", required=True,
              help="UTF-8: three fifths calibrate, one is searched by, and the last judges.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True,
              help="Gets pareto.json and pareto.svg; until then, what is done so far.")  # fmt: skip
@click.option("--scheme", "schemes", metavar="SCHEME", multiple=True,
              help="As quantize takes it.  [default: every precision by every method]")  # fmt: skip
@click.option("--max-bytes", "budgets", metavar="N|SHARE", multiple=True,
              help="Of a searched mixture.  [default: each scheme's size, and between]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of decoding.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every processor.")
@click.option("--force", is_flag=True, help="Replace what is in the output folder.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the JSON here too.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw the picture here too.")
def command(
    bundle: Path,
    text: Path,
    output: Path,
    schemes: tuple[str, ...],
    budgets: tuple[str, ...],
    rounds: int,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    force: bool,
    json_to: str | None,
    svg: Path | None,
) -> None:
    """Store BUNDLE, a bundle in full precision, in every way, and say which ways none beats in bytes, KL and
    tokens per second together. Quality is that on text which nothing learned from; speeds are medians of
    rounds over all. Interrupted, it goes on where it stopped.

    \b
    doge-export pareto out/doge-tiny --text models/heldout.txt -o out/front
    doge-export pareto out/doge-tiny --text corpus.txt -o out/front --scheme int8 --max-bytes 0.2
    """
    from doge_export.core.bundle import check_target
    from doge_export.core.errors import DogeExportError
    from doge_export.core.journal import check_work

    report, picture, work = output / "pareto.json", output / "pareto.svg", output / ".work"
    if output.exists() and not output.is_dir():
        raise DogeExportError(f"{output} is no folder.", "Give another -o.")
    for path in (report, picture):
        if path.exists() and not force:
            raise DogeExportError(f"{path} exists already.", "Use --force to replace it.")
        check_target(path, (bundle, text))
    check_work(work)

    from doge_export.compress.pareto import SCHEMES, Pareto, pareto
    from doge_export.evaluate import read_sample  # takes seconds: after what can be said at once
    from doge_export.render.charts import pareto_svg

    settings = Pareto(schemes or SCHEMES, budgets or None, rounds, prompt_tokens, new_tokens, threads)
    content = read_sample(text)
    with show_progress("Measuring") as progress:
        result = pareto(bundle, content, work, settings, progress=progress)
    result["text"] = text.name
    drawn = pareto_svg(result["points"], bundle.name)
    write_json(result, report)
    for path in (picture, *(() if svg is None else (svg,))):
        write_text(drawn, path)
    if json_to is not None:
        write_json(result, json_to)
    shutil.rmtree(work)
    if json_to != "-":
        _say(result, output)


def _say(result: dict[str, Any], output: Path) -> None:
    points = sorted(result["points"], key=lambda point: -point["kl_divergence"])
    width = max(len(point["name"]) for point in points)
    titles = f"{'bytes':>12} {'share':>6} {'KL':>8} {'error':>6} {'top-1':>7} {'tokens/s':>9}"
    click.echo(f"  {'':{width}} {titles}")
    for point in points:
        mark = "*" if point["front"] else " "
        error = "" if point["kl_error"] is None else f"{point['kl_error']:.0e}"
        quality = f"{point['kl_divergence']:>8.1e} {error:>6} {point['top1_agreement']:>7.2%}"
        size = f"{point['bytes']:>12,} {point['of_full']:>6.3f}"
        speed = f"{point['tokens_per_second']:>9,.0f}"
        click.echo(f"{mark} {point['name']:{width}} {size} {quality} {speed}")
    click.echo(
        f"* none is better in all three; {result['judged_tokens']:,} tokens judge; error: standard, of KL; "
        "bytes: of model.onnx and its weights"
    )
    click.echo(f"{output / 'pareto.svg'}")
    for point in points:
        if point["front"]:
            command_line = f"doge-export {point['command']}" if point["command"] else "BUNDLE as it is"
            click.echo(f"{point['name']}: {command_line}")
            if point["types"]:
                types = " ".join(f"--set {name}={dtype}" for name, dtype in point["types"].items())
                click.echo(f"    {types}")
