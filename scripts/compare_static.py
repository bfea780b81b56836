"""w8a8 and w8a8-fp8 of ours beside onnxruntime's stock static quantizer: KL, top-1 agreement and bytes.

    .venv/bin/python scripts/compare_static.py                    # doge-tiny on its held-out text
    .venv/bin/python scripts/compare_static.py --model doge-tiny-moe --json build/static.json
    .venv/bin/python scripts/compare_static.py --only w8a8-fp8

The first four fifths of the text calibrate (64 windows), the rest judges, against the full model, in plain
onnxruntime. The stock one (onnxruntime.quantization.quantize_static: QDQ, int8, per channel, symmetric
activations, which TensorRT wants) gets the same plain export and the same windows, once for all operators
that it knows and once for products and tables alone.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from compare_quantizers import ROOT, compared, opened, read
from doge_export.compress.calibration import CALIBRATIONS, windows
from doge_export.compress.calibration.inputs import first_call
from doge_export.compress.quantize_bundle import judged_windows, quantize_bundle
from doge_export.core.bundle import Bundle
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime.graph import fold_weights

OURS: tuple[dict[str, Any], ...] = (
    *({"scheme": "w8a8-fp8", "calibration": name} for name in ("min-max", "percentile")),
    *({"scheme": "w8a8-fp8", "calibration": name, "smooth": 0.5} for name in ("min-max", "percentile")),
    {"scheme": "w8a8-fp8", "types": {"router_gate": "fp8"}},
    {"scheme": "w8a8-fp8", "types": {"v_proj": "fp32", "down_proj": "fp32"}},
    *({"calibration": name} for name in CALIBRATIONS),
    *({"calibration": name, "smooth": 0.5} for name in CALIBRATIONS),
    {},
    {"types": {"router_gate": "int8"}, "smooth": 0.5},
    {"types": {"v_proj": "fp32"}},
    {"types": {"v_proj": "fp32", "down_proj": "fp32"}},
)


class Reader:
    """onnxruntime's CalibrationDataReader: one feed after another."""

    def __init__(self, bundle: Bundle, ids: npt.NDArray[np.int64]) -> None:
        self._bundle, self._ids = bundle, ids
        self._left: Iterator[npt.NDArray[np.int64]] = iter(ids)

    def get_next(self) -> dict[str, Any] | None:
        row = next(self._left, None)
        return None if row is None else first_call(self._bundle, row[None])

    def rewind(self) -> None:
        self._left = iter(self._ids)


def stock(bundle: Bundle, ids: npt.NDArray[np.int64], path: Path, method: str, operators: Any) -> None:
    """Write the stock quantizer's model to `path`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            str(bundle.model_path),
            str(path),
            Reader(bundle, ids),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )


def folded(bundle: Bundle) -> Any:
    """A bundle of ours, its matrices dequantized at load where it is made for that."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    fold_weights(options, bundle)
    return ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])


def unoptimized(model: Path) -> Any:
    """onnxruntime 1.32 refuses the stock quantizer's int8 models of this graph once it optimizes them."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def label(options: dict[str, Any]) -> str:
    parts = [f"{options.get('scheme', 'w8a8')}, {options.get('calibration', 'default')}"]
    parts += [f"smooth {options['smooth']}"] if "smooth" in options else []
    parts += [f"{name}={dtype}" for name, dtype in options.get("types", {}).items()]
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="doge-tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--only", choices=("w8a8", "w8a8-fp8"), help="of ours, nothing stock")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    border = text.rfind(" ", 0, len(text) * 4 // 5)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ExportOptions.resolve(target="onnx", routing="per-token")
        plain = export_model(arguments.model, folder / "plain", options, validate=False).bundle
        known, ids = windows(plain, text[:border], 64), judged_windows(plain, text)
        base = list(read(opened(plain.model_path), plain, ids))
        size = sum(e.bytes for n, e in plain.manifest.files.items() if n.startswith("model.onnx"))

        def judge(name: str, session: Any, bytes_: int) -> None:
            figures = compared(base, read(session, plain, ids))
            results[name] = {**figures, "bytes": bytes_, "of_fp32": bytes_ / size}
            print(name, results[name], file=sys.stderr)

        for case in OURS:
            scheme = case.get("scheme", "w8a8")
            if "router_gate" in case.get("types", ()) and not plain.config.is_moe:
                continue
            if arguments.only not in (None, scheme):
                continue
            settings = {key: value for key, value in case.items() if key != "scheme"}
            requantized = quantize_bundle(plain.path, folder / "made", scheme, text, force=True, **settings)
            bundle = requantized.exported.bundle
            files = bundle.manifest.files.items()
            bytes_ = sum(entry.bytes for name, entry in files if name.startswith("model.onnx"))
            judge(f"ours, {label(case)}", folded(bundle), bytes_)
        for method in () if arguments.only else ("MinMax", "Percentile", "Entropy"):
            for kind, operators in (("all", None), ("products and tables", ["MatMul", "Gather"])):
                path = folder / "stock.onnx"
                try:
                    stock(plain, known, path, method, operators)
                    judge(f"stock {method}, {kind}", unoptimized(path), path.stat().st_size)
                except (ValueError, RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail) as error:
                    print(f"stock {method}, {kind}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{arguments.model}, {ids.size:,} tokens of {arguments.text.name}\n")
    print("| | KL against fp32 | top-1 agreement | bytes of fp32 |")
    print("|---|---|---|---|")
    for name, row in results.items():
        shares = f"{row['top1_agreement']:.2%} | {row['of_fp32']:.4f}"
        print(f"| {name} | {row['kl_divergence']:.2e} | {shares} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
