"""The parity table of docs/lab/2026-11-30-parity.md, measured: random checkpoints, exported, call by call.

    .venv/bin/python scripts/parity_table.py                # against the pinned reference
    .venv/bin/python scripts/parity_table.py --stock        # only torch.topk made stable

The configurations and schedules are those of tests/export/test_parity.py. Each cell is the largest
absolute difference of logits over real positions, over `--seeds` random checkpoints; a row with a chosen
key or expert that differs is marked with the share that agrees.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.model.operators.topk import stable_topk
from doge_export.validate.backends import reference as reference_module
from tests.conftest import write_checkpoint
from tests.export.test_parity import CONFIGURATIONS, TABLE, compare


@contextlib.contextmanager
def ties_only() -> Generator[None]:
    """The reference with a stable torch.topk and nothing else pinned."""

    def topk(values: torch.Tensor, k: int, dim: int = -1, **_: Any) -> Any:
        return torch.return_types.topk(stable_topk(values, k, dim))

    before = torch.topk
    torch.topk = topk  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.topk = before


def rows() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Row -> (export options, configuration)."""
    table: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        name: ({}, changes) for name, changes in CONFIGURATIONS.items()
    }
    static = {"kv_cache": "static", "max_length": 64}
    table["dense, static cache"] = (static, {})
    table["experts, static cache"] = (static, {"is_moe": True})
    table["experts, --routing per-token"] = ({"routing": "per-token"}, {"is_moe": True})
    table["dense, bounded cache"] = ({"kv_cache": "bounded"}, {})
    table["experts, --routing per-token, bounded cache"] = (
        {"kv_cache": "bounded", "routing": "per-token"},
        {"is_moe": True},
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stock", action="store_true", help="pin nothing but torch.topk's ties")
    parser.add_argument("--seeds", type=int, default=1, help="random checkpoints a row")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small for two
    if arguments.stock:
        reference_module.pinned = ties_only  # type: ignore[attr-defined]
    names = [schedule.name for schedule in TABLE]
    print("| | " + " | ".join(names) + " | same keys and experts |")
    print("|---|" + "---|" * (len(names) + 1))
    results: dict[str, Any] = {}
    for name, (options, changes) in rows().items():
        worst = dict.fromkeys(names, 0.0)
        agreement = 1.0
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = write_checkpoint(Path(folder) / "checkpoint", seed, **changes)
                resolved = ExportOptions.resolve(**options)
                bundle = export_model(
                    str(checkpoint), Path(folder) / "bundle", resolved, validate=False
                ).bundle
                per_token = options.get("routing") == "per-token"
                for schedule, difference, share in compare(checkpoint, bundle, TABLE, per_token):
                    worst[schedule] = max(worst[schedule], difference)
                    agreement = min(agreement, share)
        cells = [f"{value:.1e}" for value in worst.values()]
        share_text = "all" if agreement == 1.0 else f"{agreement:.1%}"
        print(f"| {name} | " + " | ".join(cells) + f" | {share_text} |", flush=True)
        results[name] = {"max_abs_diff": worst, "selection_agreement": agreement}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
