"""`doge-export validate`: a bundle against its checkpoint."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import pairs, write_json, write_text


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", required=True, help="The checkpoint: a folder, a fixture's name, or a hub id.")
@click.option("--adapter", type=click.Path(path_type=Path), help="The LoRA adapter that was merged into it.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random tokens."
)
@click.option(
    "--tolerance", type=float, help="Largest absolute difference of float32 logits.  [default: 1e-4]"
)
@click.option("--limit", "limits", multiple=True, metavar="FIGURE=X",
              help="Hold max_abs_diff, relative_error, kl_divergence, kl_98, top1_agreement, top5_agreement, "
              "selection, best or tokens to another limit, or to one at all.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="UTF-8: to compare the tokenizers on, in the place of samples, and to measure on it "
              "what rounding cost.  [default: a text that comes with the package]")  # fmt: skip
@click.option("--json", "json_to", metavar="FILE|-", help="Write the report as JSON.")
@click.option("--html", "html_to", type=click.Path(path_type=Path), metavar="FILE",
              help="Write it as a page: a certificate, with the hashes of the files.")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    reference: str,
    adapter: Path | None,
    seed: int,
    tolerance: float | None,
    limits: tuple[str, ...],
    text: Path | None,
    json_to: str | None,
    html_to: Path | None,
) -> None:
    """Compare BUNDLE with transformers on the same schedules of calls. Exit code 1 on a miss.

    \b
    doge-export validate out/doge-tiny --reference doge-tiny
    doge-export validate out/doge-20m --reference path/to/Doge-20M --json report.json
    doge-export validate out/int8 --reference doge-tiny --limit top5_agreement=0.99 --html report.html
    """
    from doge_export.bench.machine import describe
    from doge_export.evaluate import read_text
    from doge_export.export.pipeline import validate_bundle
    from doge_export.render import certificate, certificate_dict, report_lines
    from doge_export.runtime import open_folder

    content = None if text is None else read_text(text)
    with show_progress("Validating") as progress:
        report = validate_bundle(
            bundle,
            reference,
            seed=seed,
            tolerance=tolerance,
            limits=_numbers(limits),
            text=content,
            adapter=adapter,
            progress=progress,
        )
    if json_to is not None:
        write_json(certificate_dict(report, open_folder(bundle), describe()), json_to)
    if html_to is not None:
        write_text(certificate(report, open_folder(bundle), describe()), html_to)
    if json_to != "-":
        for line in report_lines(report, every=True):
            click.echo(line)
    if not report.passed:
        ctx.exit(1)


def _numbers(limits: tuple[str, ...]) -> dict[str, float]:
    from doge_export.core.errors import DogeExportError

    numbers = {}
    for name, value in pairs(limits, "--limit").items():
        try:
            numbers[name] = float(value)
        except ValueError:
            raise DogeExportError(f"--limit {name}={value}: {value!r} is not a number.") from None
    return numbers
