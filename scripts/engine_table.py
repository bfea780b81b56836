"""Build engines of presets and fixtures, for each compute capability and in each type, and print a table of
their sizes and build times.

    .venv/bin/python scripts/engine_table.py --folder build/engines
    .venv/bin/python scripts/engine_table.py --folder build/engines --sm 80+86+89+120 --models doge-tiny
    .venv/bin/python scripts/engine_table.py --folder build/engines --sm 89,120 \
        --models doge-tiny,doge-tiny-moe,Doge-20M --types float32,bfloat16,float16/int8-row,float16/fp8

A type is a --dtype, or that and a --precision. What is built already is not built again: the figures lie in
the folder, and the bundles, which may be deleted once their engines are built. Engines are not kept.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from doge_export.compress.quantize_bundle import quantize_bundle
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.engines import build_engine
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.weights import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("Doge-20M", "Doge-60M", "Doge-160M", "Doge-20M-MoE", "Doge-120M-MoE", "doge-tiny", "doge-tiny-moe")
CAPABILITIES = ("80", "86", "89", "120")
REFUSED = "refused"
_LARGE = 4096  # numbers
_PIECE = 48  # bytes from the middle of a tensor


def bundle_of(model: str, kind: str, folder: Path) -> Bundle:
    """The export of `model` in the type `kind`, made where it is not in `folder` yet. w8a8 and w8a8-fp8 take
    the ranges of activations from models/heldout.txt: that needs a tokenizer, which presets do not have."""
    dtype, _, name = kind.partition("/")
    if not folder.exists():
        precision = PRECISIONS.get(name)
        static = precision is not None and precision.static is not None
        options = ExportOptions.resolve(
            target="tensorrt", dtype=dtype, precision=PRECISIONS["fp32"].name if static else name or None
        )
        if not static:
            export_model(model, folder, options, validate=False)
        else:
            with tempfile.TemporaryDirectory(prefix="doge-export-") as plain:
                export_model(model, Path(plain) / "bundle", options, validate=False)
                text = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")
                quantize_bundle(Path(plain) / "bundle", folder, name, text)
    return Bundle.open(folder)


def figures(model: str, kind: str, capability: str, folder: Path) -> dict[str, Any]:
    """Bytes of the bundle's weights and of the engine for one capability, or for several ("80+89"), seconds
    of its build on the processor and by the clock, layers of its network, and `copies`; or the sentence by
    which it is refused."""
    path = folder / f"{capability}.json"
    if not path.exists():
        bundle = bundle_of(model, kind, folder / "bundle")
        output = folder / f"engine-{capability}"
        started = time.process_time()
        try:
            built = build_engine(bundle.path, output, capabilities=capability.split("+"), force=True)
        except DogeExportError as error:
            return {REFUSED: str(error)}
        measured = {
            "weights": (bundle.path / "model.onnx.data").stat().st_size,
            "bytes": built.engine.model_path.stat().st_size,
            "cpu_seconds": time.process_time() - started,
            "seconds": built.seconds,
            "layers": built.layers["count"],
            **copies(bundle, built.engine.model_path),
        }
        path.write_text(json.dumps(measured))
        built.engine.model_path.unlink()
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def copies(bundle: Bundle, engine: Path) -> dict[str, int]:
    """Of the bundle's large tensors: how many the engine has once, several times, and not at all as they are
    or transposed; and the bytes of all copies after the first."""
    content = engine.read_bytes()
    counts = {"once": 0, "several": 0, "elsewhere": 0, "repeated_bytes": 0}
    for value in ir.load(bundle.model_path).graph.initializers.values():
        assert value.const_value is not None
        weight = value.const_value.numpy()
        if weight.size < _LARGE:
            continue
        ways = {ir.tensor(each).tobytes() for each in (weight, np.ascontiguousarray(weight.T))}
        number = sum(content.count(way[len(way) // 2 :][:_PIECE]) for way in ways)
        counts["once" if number == 1 else "several" if number else "elsewhere"] += 1
        counts["repeated_bytes"] += max(number - 1, 0) * value.const_value.nbytes
    return counts


def _shown(capability: str) -> str:
    return " and ".join(f"{each[:-1]}.{each[-1]}" for each in capability.split("+"))


def _row(model: str, kind: str, capabilities: list[str], folder: Path) -> str:
    cells, layers, weights, copied = [], "", "", set()
    for capability in capabilities:
        measured = figures(model, kind, capability, folder)
        print(f"{model} {kind} {capability}: {measured}", file=sys.stderr)
        if REFUSED in measured:
            cells.append(REFUSED)
            continue
        layers, weights = f"{measured['layers']:,}", f"{measured['weights'] / 1e6:,.1f} MB"
        copied.add(f"{measured['once']} / {measured['several']} / {measured['elsewhere']}")
        cells.append(f"{measured['bytes'] / 1e6:,.1f} MB, {measured['cpu_seconds']:.0f} s")
    return "| " + " | ".join([model, kind, weights, layers, *cells, ", ".join(sorted(copied))]) + " |"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Bundles and figures.")
@click.option("--types", default="float16", show_default=True, help="float16, or float16/int8-row, or more.")
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option(
    "--sm", default=",".join(CAPABILITIES), show_default=True, help="An engine each; 80+89 is one for both."
)
def main(folder: Path, types: str, models: str, sm: str) -> None:
    """Print a row for each model and type: its weights, the layers of its network, each engine with the
    processor's seconds of its build, and how many large tensors the engines have once, more often, or not as
    they are."""
    capabilities = sm.split(",")
    names = ["model", "type", "weights", "layers", *map(_shown, capabilities), "copies"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for model in models.split(","):
        for kind in types.split(","):
            subfolder = folder / "-".join([model, *kind.split("/")])
            subfolder.mkdir(parents=True, exist_ok=True)
            try:
                print(_row(model, kind, capabilities, subfolder), flush=True)
            except DogeExportError as error:
                print(error, file=sys.stderr)
                sys.exit(2)


if __name__ == "__main__":
    main()
