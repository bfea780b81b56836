"""`doge-export sensitivity`: which matrices bear fewer bits."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json, write_text


@click.command("sensitivity")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", required=True,
              help="UTF-8: three fifths calibrate, one is measured on, the last is unread.")  # fmt: skip
@click.option("--type", "dtypes", multiple=True, default=("int8", "int4"), show_default=True,
              metavar="TYPE", help="What each matrix is stored in: int8, int4, or int8:32.")  # fmt: skip
@click.option(
    "--method", default="nearest", show_default=True, help="How it is rounded: nearest, search, gptq."
)
@click.option("--windows", default=8, show_default=True, help="Of 512 tokens, to measure on.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write it as JSON.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw it.")
def command(
    bundle: Path,
    text: Path,
    dtypes: tuple[str, ...],
    method: str,
    windows: int,
    json_to: str | None,
    svg: Path | None,
) -> None:
    """Round one matrix, or one role in all layers, of BUNDLE at a time, and say what that does: KL and top-1
    agreement, and how many rows choose other keys or experts. Interrupted, it goes on where it stopped.

    \b
    doge-export sensitivity out/doge-tiny --text corpus.txt --json out/tiny.json --svg out/tiny.svg
    """
    from doge_export.compress.mixed_precision import Study, sensitivity
    from doge_export.core.bundle import Bundle
    from doge_export.core.errors import DogeExportError
    from doge_export.evaluate import read_sample
    from doge_export.render.charts import sensitivity_svg
    from doge_export.weights import METHODS, WeightFormat

    known = [name for name, each in METHODS.items() if each.of_matrices]
    if method not in known:
        raise DogeExportError(f"No matrix is rounded by {method!r} alone.", f"Choose {', '.join(known)}.")
    if windows < 1:
        raise DogeExportError(f"--windows {windows} is too few.", "Give at least 1.")
    forms = [WeightFormat.parse(dtype, "embed_tokens") for dtype in dtypes]
    for form in forms:
        form.check_own("embed_tokens")
    output = svg if json_to in (None, "-") else Path(str(json_to))
    journal = None if output is None else output.with_name(f".{output.name}.journal")
    with show_progress("Measuring") as progress:
        study = Study(
            Bundle.open(bundle),
            read_sample(text),
            method=METHODS[method],
            max_windows=windows,
            journal=journal,
            progress=progress,
        )
        rows = sensitivity(study, forms, progress)
    if svg is not None:
        write_text(sensitivity_svg([row.as_dict() for row in rows], f"{bundle.name}, {method}"), svg)
    if json_to is not None:
        records = [row.as_dict() for row in rows]
        write_json(
            {"bundle": str(bundle), "method": method, "tokens": study.tokens, "rows": records}, json_to
        )
    study.journal.done()
    if json_to != "-":
        click.echo(
            f"{'matrix':24} {'type':8} {'KL':>8} {'top-1':>8} {'keys':>8} {'experts':>8} {'saved bytes':>12}"
        )
        for row in sorted(rows, key=lambda each: -each.effect.kl_divergence):
            effect = row.effect
            shares = (effect.top1_agreement, effect.changed_keys, effect.changed_experts)
            cells = " ".join(f"{'-' if share is None else f'{share:.2%}':>8}" for share in shares)
            click.echo(f"{row.name:24} {row.form!s:8} {effect.kl_divergence:8.1e} {cells} {row.saved:>12,}")
        click.echo(f"keys, experts: rows whose set changed, of those with a choice; {study.tokens:,} tokens")
