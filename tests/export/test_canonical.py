"""A graph is traced once and lowered often: what a bundle keeps gives the same files as an export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from doge_export.compress.quantize_bundle import quantize_bundle
from doge_export.core.bundle import CANONICAL, Bundle
from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.graph.canonical import CanonicalGraph
from doge_export.graph.lower import Lowering, lower
from doge_export.graph.targets import get_target
from doge_export.model import trace as trace_module
from doge_export.weights import PRECISIONS

CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({}, "int4", {"is_moe": True}),
    ({"kv_cache": "static", "max_length": 20, "dtype": "float16"}, "int8", {}),
    ({"target": "onnx", "dtype": "bfloat16"}, "int8-asym", {"tie_word_embeddings": False}),
    ({"target": "tensorrt", "max_length": 20}, "int8-row", {}),
    ({"routing": "per-token", "kv_cache": "bounded"}, "int8-head4", {"is_moe": True}),
]


def files(bundle: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.path.iterdir()}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "traced again"])
@pytest.mark.parametrize(("options", "precision", "changes"), CASES, ids=[case[1] for case in CASES])
def test_a_bundle_is_lowered_to_what_an_export_writes(
    options: dict[str, Any],
    precision: str,
    changes: dict[str, Any],
    kept: bool,
    exported: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """One of before 0.2 has no canonical graph, and is traced."""
    checkpoint, bundle = exported(options, **changes)
    rounded = ExportOptions.resolve(**options, precision=precision)
    wanted = export_model(str(checkpoint), tmp_path / "wanted", rounded, validate=False).bundle
    source = bundle.path
    if not kept:
        source = tmp_path / "old"
        source.mkdir()
        for name, content in files(bundle).items():
            if name != CANONICAL:
                (source / name).write_bytes(content)
        manifest = bundle.read_json("doge_export.json")
        del manifest["files"][CANONICAL]
        (source / "doge_export.json").write_text(json.dumps(manifest))
    made = quantize_bundle(source, tmp_path / "made", precision).exported.bundle
    assert files(made) == files(wanted) and CANONICAL not in files(made)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_comes_back_from_its_file(dtype: str, exported: Callable[..., Any], tmp_path: Path) -> None:
    _, bundle = exported({"target": "onnx", "dtype": dtype})
    first = CanonicalGraph.load(bundle.path / CANONICAL)
    first.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (bundle.path / CANONICAL).read_bytes()
    assert first.dtype == dtype and first.kv_cache == "growing" and first.rotary["scaling"] == 1.0
    assert first == CanonicalGraph.load(tmp_path / "again.onnx")


def test_it_holds_no_weight(exported: Callable[..., Any]) -> None:
    _, bundle = exported({})
    model = onnx.load(bundle.path / CANONICAL)
    assert sum(np.prod(tensor.dims) for tensor in model.graph.initializer) < 100
    names = {value.name for value in model.graph.input}
    assert "model.layers.1.mlp.down_proj.weight" in names and "input_ids" in names


def test_lowering_leaves_it_as_it_is(exported: Callable[..., Any]) -> None:
    _, bundle = exported({})
    canonical = CanonicalGraph.load(bundle.path / CANONICAL)
    before = canonical.model.SerializeToString(deterministic=True)
    model = ir.load(bundle.model_path)
    weights = {name: model.graph.initializers[name].const_value for name in canonical.weights}
    for target, precision in (("ort-cpu", "int4"), ("onnx", "fp32"), ("tensorrt", "int8-row")):
        lowering = Lowering(get_target(target), PRECISIONS[precision])
        assert lower(canonical, bundle.config, weights, lowering).model.graph.initializers
        assert canonical.model.SerializeToString(deterministic=True) == before
    with pytest.raises(KeyError):
        lower(canonical, bundle.config, {}, Lowering(get_target("onnx")))


def test_what_was_traced_is_not_traced_again(
    exported: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other numbers, targets and types are the same graph; another shape, dtype or cache is not."""
    checkpoint, _ = exported({}, keep_window_size=11)
    traced = []
    trace = trace_module.export_graph
    monkeypatch.setattr(trace_module, "export_graph", lambda *given: traced.append(given) or trace(*given))
    for number, options in enumerate(({}, {"target": "onnx"}, {"precision": "int4"}, {"dtype": "float16"})):
        export_model(
            str(checkpoint), tmp_path / str(number), ExportOptions.resolve(**options), validate=False
        )
    assert len(traced) == 1


@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "text", "another graph"])
def test_another_file_is_one_sentence(
    content: bytes | None, exported: Callable[..., Any], tmp_path: Path
) -> None:
    _, bundle = exported({})
    path = tmp_path / "canonical.onnx"
    path.write_bytes(bundle.model_path.read_bytes() if content is None else content)
    with pytest.raises(DogeExportError, match=r"canonical\.onnx is no canonical graph"):
        CanonicalGraph.load(path)
    with pytest.raises(DogeExportError, match=r"canonical\.onnx cannot be read: No such file"):
        CanonicalGraph.load(tmp_path / "nothing" / "canonical.onnx")
