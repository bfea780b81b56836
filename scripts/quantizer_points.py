"""What compare_quantizers.py measured, as the points of its picture."""

__all__ = ["quantizer_points"]

from collections.abc import Mapping
from typing import Any

_MOST = 0.3  # of fp32
_NAMED = ("int4", "int4-gptq-tuned", "int8", "int8-gptq-tuned", "int8-fine-gptq-tuned")
_STOCK = "stock RTN, head and Gather too, blocks of "


def quantizer_points(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A point for everything that has at most 0.3 of fp32, ours and stock; the ones that a reader looks for
    are named."""
    points = []
    for label, found in results.items():
        if found["of_fp32"] <= _MOST:
            ours, name = label.startswith("ours, "), label.removeprefix("ours, ")
            named = name in _NAMED or label.endswith((" 16", " 128"))
            name = name.replace(_STOCK, "onnxruntime int4, blocks of ")
            points.append({**found, "name": name, "ours": ours, "named": named})
    return points
