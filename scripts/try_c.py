"""Compile scripts/c/greedy.c, run it against bundles, and compare with `doge-export generate`.

    .venv/bin/python scripts/try_c.py out/doge-tiny out/int8

The bundles need a growing cache and float32 logits. scripts/check_ort_abi.py fetches the headers, and
the library is that of the Python package onnxruntime. Each bundle runs on function bodies and on our kernels.
Exit code 1: other tokens. 77: there is no compiler or no header, and nothing was compared.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

import doge_export
from check_ort_abi import Unavailable, fetch_headers
from try_javascript import NEW_TOKENS, ROOT, SKIPPED, compare, expected


def build(folder: Path) -> Path:
    """The compiled program, in `folder`, beside a link to ONNX Runtime's library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("there is no C compiler")
    headers = fetch_headers()
    library = folder / "libonnxruntime.so.1"
    library.symlink_to(next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1.*")))
    program = folder / "greedy"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", str(ROOT / "scripts" / "c" / "greedy.c")]
    command += ["-I", str(headers), "-o", str(program), str(library), "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, check=True)
    return program


def main() -> int:
    bundles = [Path(each) for each in sys.argv[1:]]
    if not bundles:
        print("Give bundles with a growing cache.", file=sys.stderr)
        return 2
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = build(Path(folder))
        except Unavailable as reason:
            print(f"Nothing was compared: {reason}.", file=sys.stderr)
            return SKIPPED
        for bundle in bundles:
            prompt, ids = expected(bundle)
            command = [str(program), str(bundle / "model.onnx"), str(NEW_TOKENS), "1", *map(str, prompt)]
            for name, more in (
                ("function bodies", {}),
                ("kernels", {"DOGE_LIBRARY": str(doge_export.plugin_library())}),
            ):
                done = subprocess.run(
                    command, env={**os.environ, **more}, check=True, capture_output=True, text=True
                )
                passed &= compare(f"C, {name}", bundle, done.stdout, ids)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
