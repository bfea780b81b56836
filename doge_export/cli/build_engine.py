"""`doge-export build-engine`: a bundle of --target tensorrt -> TensorRT engine."""

__all__ = ["command"]

from pathlib import Path

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json


@click.command("build-engine")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True)
@click.option("--runtime", metavar="tensorrt-rtx|tensorrt", default="tensorrt-rtx", show_default=True,
              help="tensorrt-rtx builds without a GPU; tensorrt for the GPU that it finds.")  # fmt: skip
@click.option("--sm", metavar="80,86,89,120",
              help="Compute capabilities of the GPUs it shall run on; tensorrt-rtx only.  "
              "[default: 80,86,89,120]")  # fmt: skip
@click.option("--max-batch", type=int, default=1, show_default=True, help="The most rows of a call.")
@click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="tensorrt only: what it measured before; read where it exists, and written.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write layers, sizes and times as JSON.")
def command(
    bundle: Path,
    output: Path,
    runtime: str,
    sm: str | None,
    max_batch: int,
    timing_cache: Path | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Build a TensorRT engine from BUNDLE, which was exported with --target tensorrt.

    \b
    doge-export export -m doge-tiny -o out/trt --target tensorrt --dtype float16
    doge-export build-engine out/trt -o out/engine --sm 89
    """
    from doge_export.engines import build_engine

    with show_progress("Building") as progress:
        built = build_engine(
            bundle,
            output,
            runtime=runtime,
            capabilities=None if sm is None else sm.split(","),
            max_batch=max_batch,
            timing_cache=timing_cache,
            force=force,
            progress=progress,
        )
    engine = built.engine
    size = engine.model_path.stat().st_size
    report = {
        "runtime": engine.runtime,
        "version": engine.version,
        "compute_capabilities": engine.capabilities,
        "profiles": {profile.name: profile.inputs for profile in engine.profiles},
        "engine_bytes": size,
        "seconds": built.seconds,
        "layers": built.layers,
    }
    if json_to is not None:
        write_json(report, json_to)
    if json_to != "-":
        gpus = ", ".join(engine.capabilities)
        click.echo(
            f"{output}: {engine.runtime} {engine.version}, for {gpus}: {size:,} bytes, of which weights "
            f"{built.layers['weights_bytes']:,}; {built.seconds:.1f} s"
        )
        click.echo(
            f"{built.layers['count']} layers, {built.layers['cache_updates']} of them cache updates in place:"
        )
        for each in built.layers["types"]:
            click.echo(f"  {each['count']:5} {each['type']} {each['dtype']}")
        for profile in engine.profiles:
            min_shape, opt_shape, max_shape = profile.inputs["input_ids"]
            click.echo(f"profile {profile.name}: input_ids {min_shape} to {max_shape}, tuned for {opt_shape}")
