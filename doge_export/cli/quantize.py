"""`doge-export quantize`: a bundle in fewer bits."""

__all__ = ["command"]

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import pairs, write_json

if TYPE_CHECKING:
    from doge_export.compress.budget_search import Searched
    from doge_export.compress.quantize_bundle import Requantized
    from doge_export.weights import Method

_log = logging.getLogger(__name__)


@click.command("quantize")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True)
@click.option("--scheme", metavar="SCHEME", required=True,
              help="int8, int8-fine, int4, int8-head4; better with -search, -hqq, -gptq or -awq behind it, "
              "best with -gptq-tuned, which takes minutes. "
              "int8-asym, int4-asym: with zero points, of a bundle of --target onnx. int8-row, int4, fp8, "
              "nvfp4: of one of --target tensorrt. searched: the best "
              "mixture within --max-bytes, --max-kl or --min-top1. w8a8, w8a8-fp8: activations "
              "too.")  # fmt: skip
@click.option("--set", "settings", metavar="MATRIX=TYPE[@METHOD]", multiple=True,
              help="fp32, fp16, int8, int4, or int8:32 for blocks of at most 32, of a role, a layer, both, "
              "or one matrix: v_proj=int8, layers.0=int8, layers.0.v_proj=fp32. The closest wins. A "
              "method behind it rounds it otherwise: v_proj=int8@search, v_proj=@search.")  # fmt: skip
@click.option("--max-bytes", metavar="N|SHARE",
              help="searched: of model.onnx and its weights, as the output counts; up to 1, a share "
              "of BUNDLE's.")  # fmt: skip
@click.option("--max-kl", type=float, metavar="X", help="searched: mean KL in nats, on text searched by.")
@click.option("--min-top1", type=float, metavar="SHARE",
              help="searched: the smallest whose top-1 agreement, less its standard error, is at least this "
              "on text searched by: 0.99.")  # fmt: skip
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
    min_top1: float | None,
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
    doge-export quantize out/doge-tiny -o out/near --scheme searched --min-top1 0.99 --text corpus.txt
    doge-export quantize out/plain -o out/w8a8 --scheme w8a8 --text corpus.txt --smooth 0.5
    """
    from doge_export.compress.budget_search import searched_method
    from doge_export.compress.quantize_bundle import quantize_bundle
    from doge_export.core.errors import DogeExportError
    from doge_export.evaluate import read_sample
    from doge_export.weights import check_method, split_setting

    content = None if text is None else read_sample(text)
    method = searched_method(scheme)
    if method is not None:
        check_method(method)
        if settings or content is None:
            wrong = "chooses every type itself" if settings else "learns from a text"
            remedy = "Leave --set out." if settings else "Give one with --text FILE."
            raise DogeExportError(f"--scheme {scheme} {wrong}.", remedy)
        searched = _search(bundle, output, method, content, max_bytes, max_kl, min_top1, force)
        _say(searched, scheme, output, json_to, asdict(searched.mixture.effect))
        if min_top1 is not None:
            _say_agreement(searched, min_top1, json_to)
        return
    if any(each is not None for each in (max_bytes, max_kl, min_top1)):
        raise DogeExportError(
            "--max-bytes, --max-kl and --min-top1 belong to --scheme searched.", "Leave them out."
        )
    parts = {key: split_setting(value) for key, value in pairs(settings, "--set").items()}
    with show_progress("Quantizing") as progress:
        requantized = quantize_bundle(
            bundle,
            output,
            scheme,
            content,
            types={key: dtype for key, (dtype, _) in parts.items() if dtype},
            roundings={key: method for key, (_, method) in parts.items() if method},
            calibration=calibration,
            smooth=smooth,
            force=force,
            progress=progress,
        )
    _say(requantized, scheme, output, json_to)


def _search(
    bundle: Path,
    output: Path,
    method: "Method",
    text: str,
    max_bytes: str | None,
    max_kl: float | None,
    min_top1: float | None,
    force: bool,
) -> "Searched":
    from doge_export.compress.budget_search import Budget, parse_budget, search_bundle
    from doge_export.compress.mixed_precision import Study
    from doge_export.core.bundle import Bundle, check_output

    source = Bundle.open(bundle)
    check_output(output, force)
    most = None if max_bytes is None else parse_budget(max_bytes, source.model_bytes)
    budget = Budget(most, max_kl, min_top1)  # refused before the text is read
    journal = output.with_name(f".{output.name}.search")
    with show_progress("Searching") as progress:
        study = Study(source, text, method=method, journal=journal, progress=progress)
        searched = search_bundle(
            study,
            output,
            text,
            budget,
            force=force,
            progress=progress,
        )
    study.journal.done()
    return searched


def _say(
    requantized: "Requantized",
    scheme: str,
    output: Path,
    json_to: str | None,
    searched: dict[str, Any] | None = None,
) -> None:
    """What was made and what it cost; `searched`: the figures on the text that was searched by."""
    size = requantized.exported.bundle.model_bytes
    figures = {} if requantized.divergence is None else asdict(requantized.divergence)
    if searched is not None:
        figures["searched"] = searched
    if json_to is not None:
        types = dict(requantized.exported.bundle.manifest.options.types)
        write_json({"scheme": scheme, "bytes": size, "types": types, **figures}, json_to)
    if json_to != "-":
        click.echo(f"{output}: {scheme}, {size:,} bytes of model.onnx and its weights")
        if requantized.divergence is None:
            click.echo("not judged: give a --text to know what it cost")
        else:
            lost = requantized.divergence
            error = "" if lost.kl_error is None else f" \u00b1 {lost.kl_error:.0e}"
            share = "" if lost.top1_error is None else f" \u00b1 {lost.top1_error:.2%}"
            click.echo(
                f"KL {lost.kl_divergence:.2e}{error}, top-1 agreement {lost.top1_agreement:.2%}{share}, "
                f"perplexity {lost.base_perplexity:.4f} -> {lost.perplexity:.4f}, on {lost.tokens:,} tokens "
                "kept back"
            )


def _say_agreement(searched: "Searched", min_top1: float, json_to: str | None) -> None:
    """That the bound is kept on the text searched by, and where it is not on the text kept back."""
    effect, judged = searched.mixture.effect, searched.divergence
    assert effect.top1_error is not None and judged is not None
    if json_to != "-":
        click.echo(
            f"searched by: top-1 agreement {effect.top1_agreement:.2%} \u00b1 {effect.top1_error:.2%}, one "
            f"standard error below which is at least {min_top1:.2%}"
        )
    if judged.top1_agreement - (judged.top1_error or 0.0) < min_top1:
        _log.warning(
            "On the text kept back, top-1 agreement less its standard error is below %.2f%%. Ask for a "
            "little more, or give a longer text.",
            100 * min_top1,
        )
