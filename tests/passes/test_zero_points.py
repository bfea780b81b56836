"""Weights with zero points: in the plain graph alone, folded at load, and judged as any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from doge_export.compress.quantize_bundle import checkpoint_weights, quantize_bundle
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.inspection.contents import inspect_bundle
from doge_export.validate import validate
from doge_export.validate.diagnosis.bundle_weights import stored_weights
from doge_export.weights import dequantize, quantize, stored_bytes
from tests._precision import form

PLAIN = {"target": "onnx", "routing": "per-token"}
kinds = pytest.mark.parametrize("changes", [{}, {"is_moe": True, "tie_word_embeddings": False}],
                                ids=["dense", "experts"])  # fmt: skip
types = pytest.mark.parametrize("dtype", ["int8-asym", "int4-asym"])


@pytest.fixture(scope="module")
def made(exported: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """made(dtype, changes) -> (checkpoint, full bundle, bundle in that type)"""

    def make(dtype: str, changes: dict[str, Any]) -> tuple[Path, Bundle, Bundle]:
        checkpoint, full = exported(PLAIN, **changes)
        options = ExportOptions.resolve(**PLAIN, precision=dtype)
        output = tmp_path_factory.mktemp("asymmetric") / "bundle"
        return checkpoint, full, export_model(str(checkpoint), output, options, validate=False).bundle

    return make


@types
@kinds
def test_it_computes_with_these_numbers(dtype: str, changes: dict[str, Any], made: Any) -> None:
    checkpoint, full, bundle = made(dtype, changes)
    found, weights = stored_weights(bundle), checkpoint_weights(full)
    assert len(found) == 2 * (9 if changes else 7) + (2 if changes else 1)
    for name, numbers in found.items():
        np.testing.assert_array_equal(numbers, dequantize(quantize(weights[name], form(dtype))), name)
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert 0 < report.rounding["kl_divergence"] < (0.05 if dtype == "int8-asym" else 1)
    tensors = {each.name: each for each in onnx.load(bundle.model_path).graph.initializer}
    zeros = [each for name, each in tensors.items() if name.endswith(".zero")]
    kind = {"int8-asym": onnx.TensorProto.UINT8}.get(dtype, onnx.TensorProto.UINT4)
    assert len(zeros) == len(found) and {each.data_type for each in zeros} == {kind}
    # What a changed zero point does is seen.
    wrong = {**weights, (name := next(iter(found))): weights[name] + 0.1}
    assert not (dequantize(quantize(wrong[name], form(dtype))) == found[name]).all()


@types
@kinds
def test_nothing_is_dequantized_in_a_step(
    dtype: str, changes: dict[str, Any], made: Any, tmp_path: Path
) -> None:
    """But the rows that are gathered: each product reads a constant, so that equal keys still tie."""
    bundle = made(dtype, changes)[-1]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "FusedMatMul")]
    assert sum(node.input[1] in constants for node in products) >= 2 * 7 + 1
    makers = {output: node.op_type for node in graph.node for output in node.output}
    readers = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(readers) >= (1 + 2 * 2 if changes else 1), (
        "embedding, and both tables of experts in each layer"
    )
    assert {makers.get(node.input[0]) for node in readers} == {"Gather"}


@types
def test_inspect_counts_them(dtype: str, made: Any) -> None:
    bundle = made(dtype, {})[-1]
    rows = [row for row in inspect_bundle(bundle).parameters if row.role != "constants"]
    options = ExportOptions.resolve(**PLAIN, precision=dtype)
    tied = bundle.config.tie_word_embeddings
    assert sum(row.bytes for row in rows) == stored_bytes(
        tensor_shapes(bundle.config), options.stored, tied, 4
    )
    assert {row.dtype for row in rows if row.role == "mlp"} == {f"u{dtype.removesuffix('-asym')}"}


def test_where_they_may_be() -> None:
    for given in ({"precision": "int4-asym"}, {"types": {"v_proj": "int8-asym:32"}}):
        with pytest.raises(
            DogeExportError, match=r"--target ort-cpu takes no .*int[48]-asym: there are no ke"
        ):
            ExportOptions.resolve(**given)
        with pytest.raises(DogeExportError, match=r"--target tensorrt takes no .*int[48]-asym"):
            ExportOptions.resolve(target="tensorrt", **given)
    with pytest.raises(DogeExportError, match="--target onnx takes no matrices in types of their own"):
        ExportOptions.resolve(target="onnx", precision="int4-asym", types={"v_proj": "int8"})
    mixed = ExportOptions.resolve(target="onnx", precision="int4-asym", types={"v_proj": "int8-asym:16"})
    assert dict(mixed.stored.own) == {"v_proj": form("int8-asym:16")}


def test_rounded_by_search(exported: Any, tmp_path: Path) -> None:
    checkpoint, full = exported(PLAIN)
    types = {"v_proj": "int8-asym:16"}
    found = quantize_bundle(full.path, tmp_path / "out", "int4-asym-search", types=types).exported.bundle
    name = "model.layers.1.mlp.up_proj.weight"
    weight, stored = checkpoint_weights(full)[name], stored_weights(found)[name]
    nearest = dequantize(quantize(weight, form("int4-asym")))
    assert np.square(stored - weight).sum() < np.square(nearest - weight).sum()
    report = validate(found, checkpoint, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
