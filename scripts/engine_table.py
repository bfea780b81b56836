"""Build engines of presets and fixtures for each compute capability, and print their sizes and build times.

`.venv/bin/python scripts/engine_table.py --folder build/engines`; what is there already is not built again.
"""

import json
import sys
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir

from doge_export.bundle import Bundle
from doge_export.pipeline import export_model
from doge_export.recipe import ExportOptions
from doge_export.tensorrt import build_engine

MODELS = ("Doge-20M", "Doge-60M", "Doge-160M", "Doge-20M-MoE", "Doge-120M-MoE", "doge-tiny", "doge-tiny-moe")
CAPABILITIES = ("80", "86", "89", "120")
_LARGE = 4096  # numbers
_PIECE = 48  # bytes from the middle of a tensor


def bundle_of(model: str, folder: Path, dtype: str, precision: str) -> Bundle:
    if not folder.exists():
        options = ExportOptions.resolve(target="tensorrt", dtype=dtype, precision=precision)
        export_model(model, folder, options, validate=False)
    return Bundle.open(folder)


def figures(bundle: Bundle, folder: Path, capability: str) -> dict[str, float]:
    """Bytes of the engine for one capability, or for several ("80+89"), seconds of its build, layers of its
    network, and `copies`."""
    path = folder / f"{capability}.json"
    if not path.exists():
        built = build_engine(
            bundle.path, folder / f"engine-{capability}", capabilities=capability.split("+"), force=True
        )
        size = built.engine.model_path.stat().st_size
        found = {"bytes": size, "seconds": built.seconds, "layers": built.layers["count"]}
        found |= copies(bundle, built.engine.model_path)
        path.write_text(json.dumps(found))
        built.engine.model_path.unlink()
    read: dict[str, float] = json.loads(path.read_text())
    return read


def copies(bundle: Bundle, engine: Path) -> dict[str, float]:
    """Of the bundle's large tensors: how many the engine has once, several times, and not at all as they are
    or transposed; and the bytes of all copies after the first."""
    content = engine.read_bytes()
    found: dict[str, float] = {"once": 0, "several": 0, "elsewhere": 0, "repeated_bytes": 0}
    for value in ir.load(bundle.model_path).graph.initializers.values():
        assert value.const_value is not None
        weight = value.const_value.numpy()
        if weight.size < _LARGE:
            continue
        ways = {weight.tobytes(), np.ascontiguousarray(weight.T).tobytes()}
        number = sum(content.count(way[len(way) // 2 :][:_PIECE]) for way in ways)
        found["once" if number == 1 else "several" if number else "elsewhere"] += 1
        found["repeated_bytes"] += max(number - 1, 0) * weight.nbytes
    return found


def _shown(capability: str) -> str:
    return " and ".join(f"{each[:-1]}.{each[-1]}" for each in capability.split("+"))


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Bundles and figures.")
@click.option("--dtype", default="float16", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option(
    "--sm", default=",".join(CAPABILITIES), show_default=True, help="An engine each; 80+89 is one for both."
)
def main(folder: Path, dtype: str, precision: str, models: str, sm: str) -> None:
    capabilities, what = sm.split(","), dtype if precision == "fp32" else f"{dtype}-{precision}"
    print(f"| {what} | weights | layers | " + " | ".join(map(_shown, capabilities)) + " |")
    print("|" + "---|" * (3 + len(capabilities)))
    for model in models.split(","):
        place = folder / f"{model}-{what}"
        place.mkdir(parents=True, exist_ok=True)
        bundle = bundle_of(model, place / "bundle", dtype, precision)
        stored = (bundle.path / "model.onnx.data").stat().st_size
        cells, layers = [], 0.0
        for capability in capabilities:
            found = figures(bundle, place, capability)
            layers = found["layers"]
            cells.append(f"{found['bytes'] / 1e6:,.1f} MB, {found['seconds']:.0f} s")
            print(f"{model} {capability}: {cells[-1]}, {found}", file=sys.stderr)
        print(f"| {model} | {stored / 1e6:,.1f} MB | {layers:,.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
