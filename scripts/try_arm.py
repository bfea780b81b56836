"""Run bundles on ARM, in an emulator: onnxruntime's wheel for it, our library beside the function bodies.

    .venv/bin/python scripts/try_arm.py out/doge-tiny out/int8

It needs apt-get with Debian's packages, and pip; no root. Compiler, emulator and a Python for ARM go to
build/cross (scripts/cross_tools.py), and so do the wheels that doge_export imports, onnxruntime in the
version that is installed here: 180 MB to fetch. Each of the four kinds of loops runs
scripts/arm/compare.py, on the oldest processor that has them, for one to three minutes. Exit code 1:
logits that differ by more than 2e-4 of the largest one, another token, other loops than those asked for,
or loops for ARM that give other bits than each other. 77: something could not be fetched, and nothing was
compared.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cross_tools import CROSS, ROOT, SKIPPED, Unavailable, compiler_and_emulator, unpack

#: What is asked for, and a processor that has nothing better.
LOOPS = {"generic": "cortex-a72", "neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}
MOST = 2e-4
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")

#: onnxruntime asks the system what the processor is, and crashes where that is not an ARM one.
CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def python_for_arm() -> Path:
    """A root folder with Debian's Python for ARM and, in `site`, what doge_export imports; made once."""
    folder = CROSS / "aarch64-python"
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(CROSS / "aarch64-python.apt", ignore_errors=True)
    unpack(["python3", "libstdc++6"], folder, "arm64")
    (folder / "proc").mkdir()
    (folder / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(number=each) for each in range(2)))
    release = next((folder / "usr" / "lib").glob("python3.*")).name.removeprefix("python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--target", str(folder / "site"), "--python-version", release]
    command += [f"--platform={each}_aarch64" for each in PLATFORMS]
    command += [*project["dependencies"], f"onnxruntime=={version('onnxruntime')}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"pip has no wheels for ARM: {(done.stderr.strip().splitlines() or [''])[-1]}")
    (folder / "complete").touch()
    return folder


def build() -> Path:
    """A folder with the package and, in it, the library for ARM."""
    built = ROOT / "build" / "aarch64"
    toolchain = ROOT / "plugins" / "cmake" / "aarch64.cmake"
    subprocess.run(
        ["cmake", "-S", str(ROOT / "plugins"), "-B", str(built), "--toolchain", str(toolchain)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    command = ["cmake", "--build", str(built), "--parallel", "2", "--target", "doge_export"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    package = built / "package"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("native", "__pycache__", "models")
    shutil.copytree(ROOT / "doge_export", package / "doge_export", ignore=ignored)
    (package / "doge_export" / "native").mkdir()
    shutil.copy(built / "libdoge_export.so", package / "doge_export" / "native")
    return package


def compare(
    emulator: Path, root: Path, package: Path, loops: str, bundles: list[str]
) -> list[dict[str, Any]]:
    """What scripts/arm/compare.py finds with these loops."""
    settings = {
        "PYTHONHOME": root / "usr",
        "PYTHONPATH": f"{root / 'site'}:{package}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DOGE_EXPORT_ISA": loops,
    }
    command = [str(emulator), "-cpu", LOOPS[loops], "-L", str(root)]
    for name, value in settings.items():
        command += ["-E", f"{name}={value}"]
    python = next((root / "usr" / "bin").glob("python3.[0-9]*"))
    command += [str(python), str(ROOT / "scripts" / "arm" / "compare.py"), *bundles]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(1)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    bundles = sys.argv[1:]
    if not bundles or not all((Path(each) / "decode.onnx").is_file() for each in bundles):
        print("Give bundles that have a decode.onnx.", file=sys.stderr)
        return 2
    try:
        emulator = compiler_and_emulator("aarch64") / "qemu-aarch64"
        root = python_for_arm()
    except Unavailable as error:
        print(f"NOT RUN: nothing was compared on ARM: {error}.", file=sys.stderr)
        return SKIPPED
    package = build()
    passed = True
    bits: dict[str, set[str]] = {each: set() for each in bundles}
    print(f"{'loops':8} {'bundle':24} {'logits':>8} {'same best':>10} {'greedy steps':>13}  bits")
    for loops in LOOPS:
        for found in compare(emulator, root, package, loops, bundles):
            same = f"{found['same_best']}/{found['positions']}"
            tokens = f"{found['tokens']}/{found['steps']}"
            name, is_right = Path(found["bundle"]).name, found["tokens"] == found["steps"]
            figures = f"{found['logits']:8.1e} {same:>10} {tokens:>13}  {found['bits']}"
            print(f"{found['loops']:8} {name:24} {figures}", flush=True)
            passed &= is_right and found["loops"] == loops and found["logits"] <= MOST
            if loops != "generic":
                bits[found["bundle"]].add(found["bits"])
    passed &= all(len(each) == 1 for each in bits.values())
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
