"""What an export costs: seconds and peak memory of whole `doge-export` processes, presets at random.

    .venv/bin/python scripts/bench_export.py                       # Doge-20M and Doge-320M
    .venv/bin/python scripts/bench_export.py --presets Doge-20M --rounds 5 --json costs.json

Each preset is drawn once as a float32 checkpoint; then `export --no-validate`, `export` with its quick
validation, and `--help` run in turn, so that a change of the machine's speed meets all of them. The
median is quoted. Peak memory is the process's largest resident set, memory-mapped weights included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("doge-export")


def measure(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident bytes of one run of the command."""
    start = time.monotonic()
    process = subprocess.Popen(
        [str(COMMAND), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"doge-export {' '.join(arguments)} failed: {errors.strip()}")
    return seconds, usage.ru_maxrss * 1024.0


def bench(preset: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of `rounds` runs of each command on one preset."""
    from doge_export.core import presets
    from doge_export.core.tensor_shapes import parameter_count

    checkpoint, output = folder / preset, folder / "out"
    measure(["init", preset, "-o", str(checkpoint)])
    base = ["export", "-m", str(checkpoint), "-o", str(output), "--force"]
    commands = {"help": ["--help"], "export": [*base, "--no-validate"], "export, validated": base}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for round_ in range(rounds):
        for name, arguments in commands.items():
            print(f"{preset}: round {round_ + 1} of {rounds}, {name}", file=sys.stderr)
            runs[name].append(measure(arguments))
    weights = 4 * parameter_count(presets.load(preset))
    return {
        "preset": preset,
        "float32_weight_bytes": weights,
        "memory_limit_bytes": 2 * weights + 1.5e9,
        "runs": {
            name: {
                "seconds": statistics.median(second for second, _ in values),
                "peak_bytes": statistics.median(peak for _, peak in values),
            }
            for name, values in runs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["Doge-20M", "Doge-320M"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not COMMAND.exists():
        parser.error(f"{COMMAND} is missing; run make export first")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        results = [bench(preset, arguments.rounds, Path(name)) for preset in arguments.presets]
    print("| preset | command | seconds | peak memory | 2 x weights + 1.5 GB |")
    print("|---|---|---|---|---|")
    for result in results:
        for command, figures in result["runs"].items():
            print(
                f"| {result['preset']} | {command} | {figures['seconds']:.2f} | "
                f"{figures['peak_bytes'] / 1e9:.2f} GB | {result['memory_limit_bytes'] / 1e9:.2f} GB |"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
