"""`doge-export inspect`: what is in a bundle, and whether it is whole."""

__all__ = ["command"]

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from doge_export.core.bundle import CacheSpec, TensorSpec
    from doge_export.inspection.contents import Inspection, Operators

_STANDARD = "ai.onnx"


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--no-load", is_flag=True, help="Do not load the graph in onnxruntime.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write it as JSON.")
def command(bundle: Path, no_load: bool, json_to: str | None) -> None:
    """Show what is in BUNDLE, verify its files, and load it in onnxruntime."""
    from doge_export.core.bundle import Bundle
    from doge_export.inspection.contents import inspect_bundle

    with show_progress("Inspecting") as progress:
        inspection = inspect_bundle(Bundle.open(bundle), load=not no_load, progress=progress)
    if json_to is not None:
        write_json(inspection.as_dict(), json_to)
    if json_to != "-":
        _show(inspection)


def _show(inspection: "Inspection") -> None:
    from rich.console import Console

    # Cut to a terminal's width, but never in a file or a pipe.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    manifest = inspection.bundle.manifest
    decode = [("decode.onnx", f"cache: {_cache(manifest.decode.cache)}")] if manifest.decode else []
    plain: Sequence[tuple[str, str]] = [
        (
            "bundle",
            f"{inspection.bundle.path} (doge-export {manifest.doge_export}, format {manifest.format})",
        ),
        *([("generation", str(manifest.generation))] if manifest.generation else []),
        ("options", _pairs(manifest.options.to_dict())),
        ("versions", _pairs(manifest.versions)),
        ("size", f"{inspection.bundle.model_bytes:,} bytes of model.onnx and its weights"),
        ("cache", _cache(manifest.cache)),
        *decode,
        ("opsets", _pairs(inspection.opsets)),
        ("onnxruntime", _onnxruntime(inspection)),
        (
            "library",
            "not tried" if inspection.onnxruntime is None else inspection.library or "missing: bodies run",
        ),
    ]
    for name, text in plain:
        console.print(f"{name:12} {text}", markup=False, soft_wrap=True)
    standard = [row for row in inspection.operators if row.domain == _STANDARD]
    total = sum(row.bytes for row in inspection.parameters)
    for title, table in (
        _table("inputs", ("name", "dtype", "shape"), _specs(manifest.inputs)),
        _table("outputs", ("name", "dtype", "shape"), _specs(manifest.outputs)),
        _table(
            f"{inspection.total:,} parameters, {total:,} bytes with constants",
            ("role", "dtype", "tensors", "parameters", "bytes"),
            [
                (r.role, r.dtype, r.tensors, f"{r.parameters:,}", f"{r.bytes:,}")
                for r in inspection.parameters
            ],
        ),
        _custom("custom operators", inspection.operators),
        *([_custom("custom operators of decode.onnx", inspection.decode)] if inspection.decode else []),
        _table(
            f"standard operators, {sum(row.count for row in standard)} nodes",
            ("name", "nodes"),
            [(r.name, r.count) for r in standard],
        ),
        _table(
            "files, all as in the manifest",
            ("name", "bytes", "sha256"),
            [(name, f"{entry.bytes:,}", entry.sha256) for name, entry in manifest.files.items()],
        ),
    ):
        console.print(title, style="bold", markup=False)
        console.print(table)


def _onnxruntime(inspection: "Inspection") -> str:
    tried = "not tried" if inspection.onnxruntime is None else f"{inspection.onnxruntime} loads it"
    least = inspection.bundle.manifest.options.min_onnxruntime
    return tried if least is None else f"{tried}; a graph of this opset needs {least} at least"


def _cache(cache: "CacheSpec") -> str:
    heads = f"{cache.layers} layers of {cache.kv_heads} x {cache.head_dim}"
    length = "" if cache.max_length is None else f", max_length {cache.max_length}"
    length += "" if cache.slots is None else f", at most {cache.slots} keys a head"
    return f"{cache.kind}, {heads}, {cache.dtype}{length}"


def _custom(title: str, rows: "Iterable[Operators]") -> tuple[str, "Table"]:
    columns = ("domain", "name", "nodes", "body in the file", "runs on")
    custom = [row for row in rows if row.domain != _STANDARD]
    cells = [(r.domain, r.name, r.count, "yes" if r.body else "no", _place(r)) for r in custom]
    return _table(title, columns, cells)


def _place(row: "Operators") -> str:
    """What onnxruntime runs the nodes on, as it reports it."""
    if row.kernels is None:
        return "-"
    if row.kernels in (0, row.count):
        return "kernels" if row.kernels else "bodies"
    return f"kernels {row.kernels}, bodies {row.count - row.kernels}"


def _pairs(values: Any) -> str:
    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return " ".join(f"{name}={each}" for name, each in value.items())
        return "-" if value is None else value

    return ", ".join(f"{key} {shown(value)}" for key, value in values.items())


def _specs(specs: "Iterable[TensorSpec]") -> list[tuple[str, str, str]]:
    """One row a tensor; the cache's layers after the first differ by their number alone."""
    rows = []
    for spec in specs:
        parts = spec.name.split(".")
        if len(parts) == 3 and parts[1].isdigit():
            if parts[1] != "0":
                continue
            parts[1] = "N"
        rows.append((".".join(parts), spec.dtype, "[" + ", ".join(map(str, spec.shape)) + "]"))
    return rows


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[str, "Table"]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = column in ("nodes", "tensors", "parameters", "bytes")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # a name in brackets is no markup
    return title, table
