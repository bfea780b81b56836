"""`doge-export export`: checkpoint -> bundle."""

__all__ = ["command"]

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json
from doge_export.core.generations import GENERATIONS

if TYPE_CHECKING:
    from doge_export.core.generations.decision import Decision
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import Exported

_log = logging.getLogger(__name__)


@click.command("export")
@click.option(
    "-m", "--model", required=True, help="A checkpoint folder, a fixture's or preset's name, or a hub id."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to write."
)
@click.option(
    "--target", metavar="ort-cpu|onnx|tensorrt", help="Where the bundle is to run.  [default: ort-cpu]"
)
@click.option(
    "--dtype",
    metavar="float32|float16|bfloat16",
    help="Of weights, arithmetic and cache.  [default: float32]",
)
@click.option(
    "--precision",
    metavar="fp32|int8|int8-fine|int4|int8-head4",
    help="What the matrices are stored in; fp32 leaves them in --dtype. For tensorrt: int8-row, int4, fp8, "
    "nvfp4; for onnx: int8-asym, int4-asym.  [default: fp32]",
)
@click.option(
    "--kv-cache",
    metavar="growing|static|bounded",
    help="bounded: of keep_window_size keys, exact at any length.  [default: growing; tensorrt: static]",
)
@click.option("--routing", metavar="reference|per-token",
              help="How experts are routed; per-token does not mix tokens as the reference does.  "
              "[default: reference]")  # fmt: skip
@click.option("--max-length", type=int, help="Slots of a static cache.  [default: max_position_embeddings]")
@click.option("--plugins", is_flag=True, default=None,
              help="With --target tensorrt: a second graph, of plugins, for full TensorRT.")  # fmt: skip
@click.option("--adapter", type=click.Path(path_type=Path), help="Merge this LoRA adapter (PEFT) first.")
@click.option("--generation", metavar="NAME",
              help="Of which generation the checkpoint is, where it does not show: "
              f"{', '.join(GENERATIONS)}.")  # fmt: skip
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="A TOML file with these options; flags win over it."
)
@click.option("--no-validate", is_flag=True, help="Do not compare with the reference afterwards.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, write nothing.")
@click.option("--force", is_flag=True, help="Replace the output folder if it exists.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write a summary as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    output: Path,
    target: str | None,
    dtype: str | None,
    precision: str | None,
    kv_cache: str | None,
    routing: str | None,
    max_length: int | None,
    plugins: bool | None,
    adapter: Path | None,
    generation: str | None,
    recipe: Path | None,
    no_validate: bool,
    dry_run: bool,
    force: bool,
    json_to: str | None,
) -> None:
    """Turn a checkpoint into an ONNX bundle, exact against the reference.

    \b
    doge-export export -m doge-tiny -o out/doge-tiny
    doge-export export -m path/to/Doge-20M -o out/doge-20m --precision int8
    doge-export export -m path/to/Doge-20M-MoE -o out/moe --routing per-token --kv-cache static
    """
    from doge_export.core.bundle import check_output
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import decide, export_model, model_folders, plan_export

    options = ExportOptions.resolve(
        recipe,
        target=target,
        dtype=dtype,
        precision=precision,
        kv_cache=kv_cache,
        routing=routing,
        max_length=max_length,
        plugins=plugins,
        generation=generation,
    )
    check_output(output, force, (*model_folders(model), adapter, recipe))
    with show_progress("Reading the checkpoint") as progress:
        decision = decide(model, options.generation, adapter, progress)
    plan = plan_export(model, options, adapter, decision, validate=dry_run and not no_validate)
    if dry_run:
        _say_plan(plan, output, decision, json_to)
        return
    with show_progress("Exporting", total=plan["bytes"]) as progress:
        exported = export_model(
            model,
            output,
            options,
            validate=not no_validate,
            force=force,
            adapter=adapter,
            decision=decision,
            progress=progress,
        )
    report = exported.report
    if json_to is not None:
        summary = {**plan, "output": str(output), "validation": report.to_dict() if report else None}
        write_json(summary, json_to)
    if json_to != "-":
        _say_exported(exported, output, plan, options, decision)
    if report is not None and not report.passed:
        ctx.exit(1)


def _say_exported(
    exported: "Exported",
    output: Path,
    plan: Mapping[str, Any],
    options: "ExportOptions",
    decision: "Decision",
) -> None:
    """Say what was written, by what the generation was decided where that does not show, and what validation
    said."""
    from doge_export.render import report_lines

    click.echo(
        f"{output}: {plan['parameters'] / 1e6:.2f} M parameters, {options.dtype}, "
        f"{_rounding(options)}{exported.bundle.caches}"
    )
    _say_tokenizer(plan)
    if decision.decided_by not in ("tensors", "preset"):
        click.echo(f"generation {decision}")
    for line in report_lines(exported.report) if exported.report else ["not validated"]:
        click.echo(line)


def _rounding(options: "ExportOptions") -> str:
    if options.types:
        return f"{options.precision} weights but for some, "
    return f"{options.precision} weights, " if options.stored.rounds else ""


def _say_tokenizer(plan: Mapping[str, Any]) -> None:
    """Say where there is no tokenizer."""
    tokenizer = plan.get("tokenizer")
    if tokenizer is not None and not tokenizer["found"]:
        click.echo("no tokenizer: generate, chat and serve need one beside the model")


def _say_plan(plan: dict[str, Any], output: Path, decision: "Decision", json_to: str | None) -> None:
    if json_to is not None:
        write_json({**plan, "output": str(output), "dry_run": True}, json_to)
    if json_to != "-":
        click.echo(f"would write {output}: about {plan['bytes'] / 1e6:.1f} MB, opset {plan['opset']}")
        for name, value in plan["options"].items():
            click.echo(f"  {name} = {value}")
        _say_tokenizer(plan)
        click.echo(f"  generation {decision}")
    for warning in plan.get("tokenizer", {}).get("warnings", ()):  # what the export would warn of
        _log.warning("%s", warning)
