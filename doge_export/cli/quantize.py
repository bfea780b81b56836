"""`doge-export quantize`: a bundle in fewer bits."""

__all__ = ["command"]

from dataclasses import asdict
from pathlib import Path

import click

from doge_export.cli._shared import pairs, progress, write_json


@click.command("quantize")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True)
@click.option("--scheme", metavar="SCHEME", required=True,
              help="int8, int4 or int8-head4; with -search or -gptq behind it, better rounded.")  # fmt: skip
@click.option("--set", "settings", metavar="MATRIX=TYPE", multiple=True,
              help="fp32, int8, int4, or int8:32 for blocks of at most 32, of a role, a layer, both, or one "
              "matrix: v_proj=int8, layers.0=int8, layers.0.v_proj=fp32. The closest wins.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="UTF-8: to calibrate with, and its last fifth to judge by.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write what it cost as JSON.")
def command(
    bundle: Path,
    output: Path,
    scheme: str,
    settings: tuple[str, ...],
    text: Path | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Round the weights of BUNDLE, a bundle in full precision, and say what that costs.

    \b
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-search
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-gptq --text corpus.txt
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-search --set v_proj=int8
    """
    from doge_export.evaluate import read_text
    from doge_export.requantize import quantize_bundle

    content = None if text is None else read_text(text)
    with progress("Quantizing") as advance:
        made = quantize_bundle(
            bundle,
            output,
            scheme,
            content,
            types=pairs(settings, "--set"),
            force=force,
            progress=lambda steps, stage: advance(steps, f"Quantizing: {stage}"),
        )
    size = sum(entry.bytes for name, entry in made.exported.bundle.manifest.files.items() if "onnx" in name)
    found = None if made.divergence is None else asdict(made.divergence)
    if json_to is not None:
        write_json({"scheme": scheme, "bytes": size, **(found or {})}, json_to)
    if json_to != "-":
        click.echo(f"{output}: {scheme}, {size:,} bytes")
        if made.divergence is None:
            click.echo("not judged: give a --text to know what it cost")
        else:
            lost = made.divergence
            click.echo(
                f"KL {lost.kl_divergence:.2e}, top-1 agreement {lost.top1_agreement:.2%}, perplexity "
                f"{lost.base_perplexity:.4f} -> {lost.perplexity:.4f}, on {lost.tokens:,} tokens kept back"
            )
