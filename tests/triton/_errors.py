"""The errors of every kernel in Triton's interpreter, in every type, on all cases of the tests' tables.

    .venv/bin/python -m tests.triton._errors --into docs/lab/2026-11-26-triton.md

The tests run every case in float32 and some in half precision; this runs all of them in all types, with the
tests' own checks and limits, and prints the largest error of each output.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined

import torch

from tests._marked import put_between
from tests.ops.cases import ATTENTION_CASES, ROUTING_CASES
from tests.triton._run import LIMITS
from tests.triton.test_attention import LONG
from tests.triton.test_attention import check as check_attention
from tests.triton.test_bounded import TEXTS
from tests.triton.test_bounded import check as check_bounded
from tests.triton.test_experts import MIXTURES, check_mixture, check_routing

MARKS = ("<!-- table of tests/triton/_errors.py -->", "<!-- end of the errors -->")
#: Its dt, 3e-9, is less than any float16.
_UNDERFLOWS = "dt_bias where softplus is the identity"
#: Operator and output -> the kernels that make it.
ROWS = {
    ("DynamicMaskAttention", "present_key"): "StoreKeys, AppendKeys",
    ("DynamicMaskAttention", "present_dt"): "StoreKeys, AppendKeys",
    ("DynamicMaskAttention", "output"): "MaskThreshold, SplitAttention, CombineSplits",
    ("BoundedMaskAttention", "key"): "StageKeys, EvictKeys",
    ("BoundedMaskAttention", "dt"): "StageKeys, EvictKeys",
    ("BoundedMaskAttention", "output"): "MaskThreshold, SplitAttention, CombineSplits",
    ("ExpertRouting", "weights"): "ExpertRouting",
    ("CDMoE", "output"): "ExpertMix",
}


def found(dtype: torch.dtype) -> Iterator[tuple[str, dict[str, float]]]:
    """The operator of a case, and the errors of its outputs."""
    for attention in (*ATTENTION_CASES, *LONG):
        if attention.dtype == torch.float32 and (dtype, attention.name) != (torch.float16, _UNDERFLOWS):
            yield "DynamicMaskAttention", check_attention(replace(attention, dtype=dtype)).errors
    for text in TEXTS.values():
        yield "BoundedMaskAttention", check_bounded(replace(text, dtype=dtype))
    for routing in ROUTING_CASES:
        if routing.dtype == torch.float32:
            yield "ExpertRouting", {"weights": check_routing(replace(routing, dtype=dtype))}
    for hidden, top in MIXTURES:
        for tactic in (1, 2):
            yield "CDMoE", {"output": check_mixture(hidden, top, dtype, tactic)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    worst: dict[tuple[str, str, torch.dtype], list[float]] = defaultdict(list)
    for dtype in LIMITS:
        for operator, errors in found(dtype):
            for output, error in errors.items():
                worst[operator, output, dtype].append(error)
    names = [str(dtype).removeprefix("torch.") for dtype in LIMITS]
    lines = [
        f"| operator | output | kernels | cases | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for (operator, output), kernels in ROWS.items():
        of_types = [worst[operator, output, dtype] for dtype in LIMITS]
        cells = [operator, output, kernels, str(len(of_types[0])), *(f"{max(each):.1e}" for each in of_types)]
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.into:
        put_between(MARKS, lines, options.into)


if __name__ == "__main__":
    main()
