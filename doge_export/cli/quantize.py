"""`doge-export quantize`: a bundle in fewer bits."""

__all__ = ["command"]

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doge_export.cli._shared import pairs, progress, write_json

if TYPE_CHECKING:
    from doge_export.requantize import Requantized
    from doge_export.searched import Searched


@click.command("quantize")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True)
@click.option("--scheme", metavar="SCHEME", required=True,
              help="int8, int8-fine, int4, int8-head4; better with -search, -hqq, -gptq or -awq behind it, "
              "best with -gptq-tuned, which takes minutes. "
              "int8-asym, int4-asym: with zero points, of a bundle of --target onnx. int8-row, int4, fp8, "
              "nvfp4: of one of --target tensorrt. searched: the best "
              "mixture within --max-bytes or --max-kl. w8a8, w8a8-fp8: activations too.")  # fmt: skip
@click.option("--set", "settings", metavar="MATRIX=TYPE[@METHOD]", multiple=True,
              help="fp32, fp16, int8, int4, or int8:32 for blocks of at most 32, of a role, a layer, both, "
              "or one matrix: v_proj=int8, layers.0=int8, layers.0.v_proj=fp32. The closest wins. A "
              "method behind it rounds it otherwise: v_proj=int8@search, v_proj=@search.")  # fmt: skip
@click.option("--max-bytes", metavar="N|SHARE",
              help="searched: of model.onnx and its weights; up to 1, a share of BUNDLE's.")  # fmt: skip
@click.option("--max-kl", type=float, metavar="X", help="searched: mean KL in nats, on text searched by.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="UTF-8: to calibrate with, and its last fifth to judge by.")  # fmt: skip
@click.option("--calibration", metavar="METHOD",
              help="w8a8: min-max, percentile or entropy; w8a8-fp8: one of the first two.")  # fmt: skip
@click.option("--smooth", type=float, metavar="ALPHA",
              help="w8a8 and w8a8-fp8: move large channels into the weights, by SmoothQuant's "
              "alpha.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write what it cost as JSON.")
def command(
    bundle: Path,
    output: Path,
    scheme: str,
    settings: tuple[str, ...],
    max_bytes: str | None,
    max_kl: float | None,
    text: Path | None,
    calibration: str | None,
    smooth: float | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Round the weights of BUNDLE, a bundle in full precision, and say what that costs. w8a8 rounds what they
    are multiplied with too, and so does w8a8-fp8; they take a bundle of --target onnx or tensorrt.

    \b
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-search
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-gptq --text corpus.txt
    doge-export quantize out/doge-tiny -o out/tiny4 --scheme int4-search --set v_proj=int8
    doge-export quantize out/doge-tiny -o out/mixed --scheme searched --max-bytes 0.17 --text corpus.txt
    doge-export quantize out/plain -o out/w8a8 --scheme w8a8 --text corpus.txt --smooth 0.5
    """
    from doge_export.errors import DogeExportError
    from doge_export.evaluate import read_sample
    from doge_export.quantize import split_setting
    from doge_export.requantize import quantize_bundle
    from doge_export.searched import searched_method

    content = None if text is None else read_sample(text)
    method = searched_method(scheme)
    if method is not None:
        if settings or content is None:
            wrong = "chooses every type itself" if settings else "learns from a text"
            remedy = "Leave --set out." if settings else "Give one with --text FILE."
            raise DogeExportError(f"--scheme {scheme} {wrong}.", remedy)
        _say(_search(bundle, output, method, content, max_bytes, max_kl, force), scheme, output, json_to)
        return
    if max_bytes is not None or max_kl is not None:
        raise DogeExportError("--max-bytes and --max-kl belong to --scheme searched.", "Leave them out.")
    parts = {key: split_setting(value) for key, value in pairs(settings, "--set").items()}
    with progress("Quantizing") as advance:
        made = quantize_bundle(
            bundle,
            output,
            scheme,
            content,
            types={key: dtype for key, (dtype, _) in parts.items() if dtype},
            roundings={key: method for key, (_, method) in parts.items() if method},
            calibration=calibration,
            smooth=smooth,
            force=force,
            progress=lambda steps, stage: advance(steps, f"Quantizing: {stage}"),
        )
    _say(made, scheme, output, json_to)


def _search(
    bundle: Path,
    output: Path,
    method: str,
    text: str,
    max_bytes: str | None,
    max_kl: float | None,
    force: bool,
) -> "Searched":
    from doge_export.bundle import Bundle, check_output
    from doge_export.searched import file_bytes, parse_budget, search_bundle
    from doge_export.sensitivity import Study

    source = Bundle.open(bundle)
    check_output(output, force)
    budget = None if max_bytes is None else parse_budget(max_bytes, file_bytes(source))
    journal = output.with_name(f".{output.name}.search")
    with progress("Searching") as advance:
        study = Study(
            source,
            text,
            method=method,
            journal=journal,
            progress=lambda steps, stage: advance(steps, f"Searching: {stage}"),
        )
        made = search_bundle(
            study,
            output,
            text,
            max_bytes=budget,
            max_kl=max_kl,
            force=force,
            planned=advance.planned,
            advance=lambda name: advance(1, f"Searching: {name}"),
            progress=lambda steps, stage: advance(0, f"Searching: {stage}"),
        )
    study.journal.done()
    return made


def _say(made: "Requantized", scheme: str, output: Path, json_to: str | None) -> None:
    size = sum(entry.bytes for name, entry in made.exported.bundle.manifest.files.items() if "onnx" in name)
    found = None if made.divergence is None else asdict(made.divergence)
    if json_to is not None:
        types = made.exported.bundle.manifest.options.get("types", {})
        write_json({"scheme": scheme, "bytes": size, "types": types, **(found or {})}, json_to)
    if json_to != "-":
        click.echo(f"{output}: {scheme}, {size:,} bytes")
        if made.divergence is None:
            click.echo("not judged: give a --text to know what it cost")
        else:
            lost = made.divergence
            error = "" if lost.kl_error is None else f" \u00b1 {lost.kl_error:.0e}"
            click.echo(
                f"KL {lost.kl_divergence:.2e}{error}, top-1 agreement {lost.top1_agreement:.2%}, perplexity "
                f"{lost.base_perplexity:.4f} -> {lost.perplexity:.4f}, on {lost.tokens:,} tokens kept back"
            )
