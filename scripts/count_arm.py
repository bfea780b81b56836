"""Count the instructions of a product on ARM, in an emulator: loops beside loops, since no ARM is at hand.

    python3.11 scripts/count_arm.py [--json FILE]

A panel of 64 outputs and 512 inputs, in blocks of 32 or 128 where it is quantized, times 1, 4 and 16
rows; the table has instructions for a thousand multiplications of an activation with a weight, and how
often the loops for any processor take as many. `quantize`: what the digits of a row cost, for a thousand
of them. Every instruction counts as one, whatever it takes: this is no speed. Needs what
scripts/cross_tools.py unpacks. Exit code 77: it could not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cross_tools import ROOT, SKIPPED, Unavailable, compiler_and_emulator

LOOPS = ("generic", "neon", "dotprod", "i8mm")
#: What is multiplied, and the size of its blocks.
KINDS = (("int8", 128), ("int8", 32), ("int4", 32), ("float32", 32), ("float16", 32), ("quantize", 32))
ROWS = (1, 4, 16)
INPUTS, OUTPUTS = 512, 64


def build(tools: Path, folder: Path) -> Path:
    """scripts/arm/count.cc with the kernels, linked without any library that starts by itself."""
    built = ROOT / "build" / "aarch64"
    toolchain = ROOT / "plugins" / "cmake" / "aarch64.cmake"
    configure = ["cmake", "-S", str(ROOT / "plugins"), "-B", str(built), "--toolchain", str(toolchain)]
    make = ["cmake", "--build", str(built), "--parallel", "2", "--target", "doge_kernels"]
    program = folder / "count"
    link = [str(tools / "aarch64-linux-gnu-g++"), "-std=c++17", "-O2", "-static", "-o", str(program)]
    link += [str(ROOT / "scripts" / "arm" / "count.cc"), str(built / "libdoge_kernels.a")]
    for command in (configure, make, link):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return program


def executed(emulator: Path, program: Path, loops: str, kind: tuple[str, int], rows: int, times: int) -> int:
    """How many instructions the program executes in all: the emulator logs each as a block of its own."""
    log = program.with_name("log")
    command = [str(emulator), "-cpu", "max", "-singlestep", "-d", "nochain,exec", "-D", str(log)]
    command += [str(program), kind[0], str(kind[1]), str(rows), str(times)]
    environment = {**os.environ, "DOGE_EXPORT_ISA": loops}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert said.strip() == loops
    with log.open("rb") as lines:
        return sum(1 for _ in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count instructions of products on ARM.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            tools = compiler_and_emulator("aarch64")
        except Unavailable as error:
            print(f"NOT RUN: nothing was counted: {error}.", file=sys.stderr)
            return SKIPPED
        program = build(tools, Path(folder))
        print(f"{'':14}" + "".join(f"{each:>16}" for each in LOOPS))
        for kind in KINDS:
            for rows in ROWS if kind[0] != "quantize" else (1,):
                thousands = rows * INPUTS * (OUTPUTS if kind[0] != "quantize" else 1) / 1000
                found = {}
                for loops in LOOPS:
                    once, twice = (
                        executed(tools / "qemu-aarch64", program, loops, kind, rows, times)
                        for times in (1, 2)
                    )
                    found[loops] = (twice - once) / thousands
                name = f"{kind[0]}:{kind[1]}" if kind[0].startswith("int") else kind[0]
                figures[f"{name} {rows}"] = found
                cells = [f"{each:9.1f} {found['generic'] / each:5.1f}x" for each in found.values()]
                print(f"{name:9}{rows:>5}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
