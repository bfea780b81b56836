"""Hold plugins/onnxruntime/ort_abi.h to ONNX Runtime's own header, by compiling check_abi.cc against it.

No package of PyPI or Debian has the header; a package of npm carries the full set (API 29) beside its own
files. It is 150 MB, so the headers alone are kept, in build/ort_headers. Exit code 77: there was no npm, no
registry or no compiler, so that nothing was checked.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "build" / "ort_headers"
PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
CHECK = ROOT / "plugins" / "onnxruntime" / "check_abi.cc"
#: The package holds the same headers once for every platform.
INSIDE = "/ios-arm64/onnxruntime.framework/Headers/"
SKIPPED = 77


class Unavailable(Exception):
    """What the check needs is not to be had here; the message says what."""


def fetch_headers() -> Path:
    """The folder of the headers, fetched at the first call."""
    if (HEADERS / "onnxruntime_c_api.h").is_file():
        return HEADERS
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("there is no npm to fetch ONNX Runtime's header with")
    partial = HEADERS.with_name(f"{HEADERS.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--pack-destination", str(partial), "--silent"],
            cwd=partial,
            capture_output=True,
            text=True,
            timeout=300,
        )
        archives = list(partial.glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"npm cannot fetch {PACKAGE}: {line}")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                if INSIDE in member.name and member.name.endswith(".h") and member.isfile():
                    source = archive.extractfile(member)
                    assert source is not None
                    (partial / Path(member.name).name).write_bytes(source.read())
        archives[0].unlink()
        HEADERS.parent.mkdir(exist_ok=True)
        if not HEADERS.exists():
            partial.rename(HEADERS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"npm did not fetch {PACKAGE} in time") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return HEADERS


def check(headers: Path, source: Path = CHECK) -> subprocess.CompletedProcess[str]:
    """Compile check_abi.cc; every disagreement is one of the compiler's errors."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise Unavailable("there is no C++ compiler")
    # the header's own attributes on function types mean nothing to a comparison of types
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-ignored-attributes"]
    return subprocess.run(
        [*command, "-fsyntax-only", "-I", str(headers), str(source)], capture_output=True, text=True
    )


def main() -> int:
    try:
        done = check(fetch_headers())
    except Unavailable as error:
        print(f"ONNX Runtime's ABI was not checked: {error}.")
        return SKIPPED
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        print("plugins/onnxruntime/ort_abi.h is not what ONNX Runtime's header says.", file=sys.stderr)
        return 1
    print("plugins/onnxruntime/ort_abi.h is what ONNX Runtime's header says.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
