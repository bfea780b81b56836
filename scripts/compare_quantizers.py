"""int8 and int4 of ours beside onnxruntime's stock quantizers: KL, top-1 agreement and bytes, in one run.

    .venv/bin/python scripts/compare_quantizers.py                    # doge-tiny on its held-out text
    .venv/bin/python scripts/compare_quantizers.py --model doge-tiny-moe --text build/corpus/heldout.txt

The first four fifths of the text calibrate, the rest judges, against the full model. Ours are those of
`quantize`, on function bodies, those with zero points of the plain export. Mixtures are `pareto`'s.

The stock ones (onnxruntime.quantization.matmul_nbits_quantizer: RTN, HQQ and k-quant, 4 bits) quantize the
matrix products of the plain ONNX export whose weight is constant. A tied head reads the transposed table, so
by themselves they leave the whole table in float32; "head too" have that table once more as a constant; with
"Gather too" they quantize the embedding and the experts as well, and have a tied table twice.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.compress.calibration.inputs import first_call
from doge_export.compress.quantize_bundle import judged_windows, matrix_inputs, quantize_bundle
from doge_export.core.bundle import Bundle
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.render.charts import pareto_svg
from doge_export.validate.metrics import compare_logits
from quantizer_points import quantizer_points

ROOT = Path(__file__).resolve().parent.parent
OURS = (
    *("int8", "int8-search", "int8-gptq", "int8-awq-gptq", "int8-gptq-tuned"),
    *("int8-fine", "int8-fine-gptq", "int8-fine-gptq-tuned"),
    *("int4", "int4-hqq", "int4-search", "int4-gptq", "int4-awq", "int4-awq-gptq", "int4-gptq-tuned"),
)
Logits = npt.NDArray[np.float32]
ASYMMETRIC = tuple(f"int{bits}-asym{method}" for bits in (8, 4) for method in ("", "-search", "-gptq"))


def read(session: Any, bundle: Bundle, ids: npt.NDArray[np.int64]) -> Iterator[Logits]:
    """Logits [1, length, vocab] of each window."""
    for row in ids:
        yield session.run(["logits"], first_call(bundle, row[None]))[0]


def compared(base: Iterable[Logits], others: Iterable[Logits]) -> dict[str, float]:
    """KL and top-1 agreement of windows, all of one length."""
    figures = [
        compare_logits(one, other, np.ones(one.shape[:2], bool))
        for one, other in zip(base, others, strict=True)
    ]
    names = ("kl_divergence", "top1_agreement")
    return {name: float(np.mean([each[name] for each in figures])) for name in names}


def opened(model: Path | bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def with_constant_head(path: Path) -> onnx.ModelProto:
    """The model with Transpose(weight) stored as a constant of its own."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            turned = onnx.numpy_helper.to_array(weights[node.input[0]]).T.copy()
            model.graph.initializer.append(onnx.numpy_helper.from_array(turned, node.output[0]))
            model.graph.node.remove(node)
    return model


def stock(bundle: Bundle) -> dict[str, Any]:
    """Name -> the plain export with its products in 4 bits."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    both: dict[str, Any] = {
        "op_types_to_quantize": ("MatMul", "Gather"),
        "quant_axes": (("MatMul", 0), ("Gather", 1)),
    }
    configs = {
        "stock RTN, symmetric": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True),
        "stock RTN, asymmetric": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False),
        "stock HQQ": nbits.HQQWeightOnlyQuantConfig(block_size=32),
        "stock k-quant": nbits.KQuantWeightOnlyQuantConfig(),
        **{
            f"stock RTN, head and Gather too, blocks of {block}": nbits.DefaultWeightOnlyQuantConfig(
                block_size=block, is_symmetric=True, **both
            )
            for block in (16, 32, 64, 128)
        },
        "stock RTN, symmetric, head too": nbits.DefaultWeightOnlyQuantConfig(
            block_size=32, is_symmetric=True
        ),
        "stock HQQ, head too": nbits.HQQWeightOnlyQuantConfig(block_size=32),
    }
    models: dict[str, Any] = {}
    logging.getLogger(nbits.__name__).setLevel(logging.ERROR)
    for name, config in configs.items():
        try:
            model = (with_constant_head if "too" in name else onnx.load)(bundle.model_path)
            quantizer = nbits.MatMulNBitsQuantizer(model, algo_config=config)
            quantizer.process()
            models[name] = quantizer.model.model.SerializeToString()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="doge-tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--only", nargs="*", metavar="SCHEME", help="these of ours, nothing stock")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path, help="draw what has at most 0.3 of fp32")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full = export_model(
            arguments.model, folder / "full", ExportOptions.resolve(routing="per-token"), validate=False
        ).bundle
        plain = export_model(
            arguments.model,
            folder / "plain",
            ExportOptions.resolve(target="onnx", routing="per-token"),
            validate=False,
        ).bundle
        ids = judged_windows(full, text)
        base = list(read(opened(full.model_path), full, ids))
        size = full.model_bytes

        def row(logits: Iterator[Logits], bytes_: int) -> dict[str, Any]:
            return {**compared(base, logits), "bytes": bytes_, "of_fp32": bytes_ / size}

        known = matrix_inputs(full, text)
        for scheme in arguments.only or (*OURS, *ASYMMETRIC):
            print(f"ours, {scheme}", file=sys.stderr)
            source = plain if "asym" in scheme else full
            quantized = quantize_bundle(
                source.path, folder / scheme, scheme, text, known_inputs=known
            ).exported.bundle
            results[f"ours, {scheme}"] = row(
                read(opened(quantized.model_path), quantized, ids), quantized.model_bytes
            )
        for label, content in ({} if arguments.only else stock(plain)).items():
            print(label, file=sys.stderr)
            results[label] = row(read(opened(content), plain, ids), len(content))
    print(f"{arguments.model}, {ids.size:,} tokens of {arguments.text.name}\n")
    print("| | KL against fp32 | top-1 agreement | bytes | of fp32 |")
    print("|---|---|---|---|---|")
    for label, figures in results.items():
        shares = f"{figures['top1_agreement']:.2%} | {figures['bytes']:,} | {figures['of_fp32']:.3f}"
        print(f"| {label} | {figures['kl_divergence']:.2e} | {shares} |")
    if arguments.svg:
        points = quantizer_points(results)
        arguments.svg.write_text(pareto_svg(points, arguments.model), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
