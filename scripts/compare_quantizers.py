"""int8 and int4 of ours beside onnxruntime's stock quantizers: KL, top-1 agreement and bytes, in one run.

    .venv/bin/python scripts/compare_quantizers.py                    # doge-tiny on its held-out text
    .venv/bin/python scripts/compare_quantizers.py --model doge-tiny-moe --json build/quantizers.json

The first four fifths of the text calibrate, the rest judges, against the full model. Ours are those of
`quantize`, on function bodies. The stock ones (onnxruntime.quantization.matmul_nbits_quantizer: RTN, HQQ and
k-quant, 4 bits, blocks of 32) quantize the products with a constant matrix of the plain ONNX export, and
leave the rest in float32: experts, and the tied table, which the head reads through a Transpose.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.bundle import Bundle
from doge_export.calibrate import windows
from doge_export.calibrate.inputs import first_call
from doge_export.pipeline import export_model
from doge_export.recipe import ExportOptions
from doge_export.requantize import quantize_bundle
from doge_export.validate.figures import compare_logits
from doge_export.validate.reference import Run

ROOT = Path(__file__).resolve().parent.parent
OURS = ("int8", "int4", "int4-hqq", "int4-search", "int4-gptq", "int4-awq", "int4-awq-gptq")


def read(session: Any, bundle: Bundle, ids: npt.NDArray[np.int64]) -> Run:
    """Logits [windows, length, vocab]."""
    return Run(np.concatenate([session.run(["logits"], first_call(bundle, row[None]))[0] for row in ids]))


def opened(model: Path | bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def stock(bundle: Bundle) -> dict[str, Any]:
    """Name -> the plain export with its products in 4 bits."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    configs = {
        "stock RTN, symmetric": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True),
        "stock RTN, asymmetric": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False),
        "stock HQQ": nbits.HQQWeightOnlyQuantConfig(block_size=32),
        "stock k-quant": nbits.KQuantWeightOnlyQuantConfig(),
    }
    found: dict[str, Any] = {}
    for name, config in configs.items():
        try:
            model = onnx.load(bundle.model_path)
            quantizer = nbits.MatMulNBitsQuantizer(model, block_size=32, algo_config=config)
            quantizer.process()
            found[name] = quantizer.model.model.SerializeToString()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="doge-tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--json", type=Path)
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
        ids = windows(full, text[text.rfind(" ", 0, len(text) * 4 // 5) :], 16)
        base = read(opened(full.model_path), full, ids)
        real = np.ones(ids.shape, bool)
        size = sum(e.bytes for n, e in full.manifest.files.items() if n.startswith("model.onnx"))
        for scheme in OURS:
            print(f"ours, {scheme}", file=sys.stderr)
            made = quantize_bundle(full.path, folder / scheme, scheme, text).exported.bundle
            bytes_ = sum(e.bytes for n, e in made.manifest.files.items() if n.startswith("model.onnx"))
            found = read(opened(made.model_path), made, ids)
            results[f"ours, {scheme}"] = {**compare_logits(base, found, real), "of_fp32": bytes_ / size}
        for label, content in stock(plain).items():
            print(label, file=sys.stderr)
            found = read(opened(content), plain, ids)
            results[label] = {**compare_logits(base, found, real), "of_fp32": len(content) / size}
    print(f"{arguments.model}, {ids.size:,} tokens of {arguments.text.name}\n")
    print("| | KL against fp32 | top-1 agreement | bytes of fp32 |")
    print("|---|---|---|---|")
    for label, row in results.items():
        shares = f"{row['top1_agreement']:.2%} | {row['of_fp32']:.3f}"
        print(f"| {label} | {row['kl_divergence']:.2e} | {shares} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
