"""`doge-export eval`: perplexity of a text."""

__all__ = ["command"]

from dataclasses import asdict
from pathlib import Path

import click

from doge_export.cli._shared import progress, write_json


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", required=True, help="UTF-8.")
@click.option("--window", type=click.IntRange(min=2), metavar="N",
              help="Tokens of context.  [default: max_position_embeddings, at most 2048]")  # fmt: skip
@click.option("--stride", type=click.IntRange(min=1), metavar="N",
              help="From one window to the next.  [default: half a window]")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=2), metavar="N", help="The first tokens of the text only.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every processor.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the figures as JSON.")
def command(
    bundle: Path,
    text: Path,
    window: int | None,
    stride: int | None,
    limit: int | None,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Measure perplexity and bits per byte of a text with BUNDLE, in windows that overlap.

    \b
    doge-export eval out/doge-tiny --text models/heldout.txt
    doge-export eval out/doge-tiny --text book.txt --window 512 --stride 64 --json -
    """
    from doge_export.bundle import Bundle
    from doge_export.evaluate import evaluate_text, read_text
    from doge_export.runtime import Session
    from doge_export.tokenizer import Tokenizer

    opened = Bundle.open(bundle)
    tokenizer, content = Tokenizer.load(opened.path), read_text(text)
    session = Session.open(opened, threads)
    with progress("Scoring") as advance:
        found = evaluate_text(
            session, tokenizer, content, window=window, stride=stride, limit=limit, advance=advance
        )
    if json_to is not None:
        write_json({"text": text.name, **asdict(found)}, json_to)
    if json_to != "-":
        click.echo(f"perplexity {found.perplexity:.4f}, {found.bits_per_byte:.4f} bits per byte")
        click.echo(
            f"{found.tokens:,} tokens, {found.bytes:,} bytes; windows of {found.window} tokens, "
            f"one every {found.stride}"
        )
