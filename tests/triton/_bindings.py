"""TensorRT's own Python bindings and plugin registry on a machine without TensorRT, a driver or a GPU.

The bindings are linked to three libraries. The registry is in the lean runtime, which PyPI has; what else
the bindings name, the builder and the parser, is an empty function here, and is never called. None of it is
seen by TensorRT for RTX, which names the same functions, in the same process.
"""

import ctypes
import functools
import importlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

__all__ = ["load_bindings", "name_bindings"]

_STUB = """
#define EMPTY(name) void* name() { return 0; }
EMPTY(createInferBuilder_INTERNAL)
EMPTY(createNvOnnxParserRefitter_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL)
EMPTY(getBuilderPluginRegistry)
EMPTY(getNvOnnxParserVersion)
EMPTY(initLibNvInferPlugins)
"""


@functools.cache
def load_bindings() -> tuple[Any, Any]:
    """What `tensorrt` and `tensorrt.plugin` would be; nothing is imported by these names."""
    libraries = importlib.import_module("tensorrt_lean_libs")
    lean = next(Path(str(libraries.__file__)).parent.glob("libnvinfer_lean.so.*"))
    version = lean.name.rpartition(".")[2]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stub.c"
        source.write_text(_STUB)
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            soname = f"lib{name}.so.{version}"
            path = Path(folder) / soname
            options = ["-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(path)]
            behind = ["-Wl,--no-as-needed", str(lean), f"-Wl,-rpath,{lean.parent}"]
            subprocess.run(["gcc", *options, str(source), *behind], check=True)
            ctypes.CDLL(str(path))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of the bindings' own source
        bindings = importlib.import_module("tensorrt_bindings")
        patch.setitem(sys.modules, "tensorrt", bindings)
        plugin = importlib.import_module("tensorrt_bindings.plugin")
    return bindings, plugin


def name_bindings(patch: pytest.MonkeyPatch) -> None:
    """`import tensorrt` finds them, until `patch` is undone: no other test shall."""
    for name, module in zip(("tensorrt", "tensorrt.plugin"), load_bindings(), strict=True):
        patch.setitem(sys.modules, name, module)
