"""Faults planted into exports of small random models, and what `validate` says of each.

    .venv/bin/python scripts/mutation_table.py               # the table, and untouched exports of 50 seeds
    .venv/bin/python scripts/mutation_table.py --seeds 0     # the table alone

Exit code 1 where a fault passes or is named wrongly, or an untouched export fails.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from doge_export.core.bundle import Bundle
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate import validate
from tests.conftest import write_checkpoint
from tests.validate.mutations import MUTATIONS, plant


def export(folder: Path, options: dict[str, Any], config: dict[str, Any], seed: int) -> tuple[Path, Bundle]:
    checkpoint = write_checkpoint(folder / "checkpoint", seed, **config)
    resolved = ExportOptions.resolve(**options)
    return checkpoint, export_model(str(checkpoint), folder / "bundle", resolved, validate=False).bundle


def table(folder: Path, only: str) -> int:
    exports: dict[str, tuple[Path, Bundle]] = {}
    wrong = 0
    print("| planted | found | cause |\n|---|---|---|")
    for number, mutation in enumerate(MUTATIONS):
        if only not in mutation.name:
            continue
        key = repr((mutation.options, mutation.config))
        if key not in exports:
            exports[key] = export(folder / f"export-{len(exports)}", mutation.options, mutation.config, 0)
        checkpoint, bundle = exports[key]
        report = validate(plant(mutation, bundle, folder / f"mutant-{number}"), checkpoint)
        named = bool(re.search(mutation.cause, report.cause or ""))
        wrong += report.passed or not named
        verdict = "MISSED" if report.passed else "yes" if named else "NAMED WRONGLY"
        print(f"| {mutation.name} | {verdict} | {report.cause} |", flush=True)
    return wrong


def untouched(folder: Path, seeds: int) -> int:
    """How many of `seeds` faultless exports, half of them dense, half with experts, do not pass."""
    failed = 0
    for seed in range(seeds):
        config = {"is_moe": True} if seed % 2 else {}
        checkpoint, bundle = export(folder / f"seed-{seed}", {}, config, seed)
        report = validate(bundle, checkpoint, seed=seed)
        failed += not report.passed
        if not report.passed:
            print(f"seed {seed}: {report.cause}", flush=True)
    print(f"untouched: {seeds - failed} of {seeds} pass")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="doge-export-") as folder:
        wrong = table(Path(folder), arguments.only) + untouched(Path(folder), arguments.seeds)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
