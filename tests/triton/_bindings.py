"""TensorRT's own Python bindings and plugin registry on a machine without TensorRT, a driver or a GPU.

The bindings are linked to three libraries. The registry is in the lean runtime, which PyPI has; what else the
bindings name, the builder and the parser, is an empty function here, and is never called.
"""

import ctypes
import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

__all__ = ["load_bindings"]

_STUB = """
#define EMPTY(name) void* name() { return 0; }
EMPTY(createInferBuilder_INTERNAL)
EMPTY(createNvOnnxParserRefitter_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL)
EMPTY(getBuilderPluginRegistry)
EMPTY(getNvOnnxParserVersion)
EMPTY(initLibNvInferPlugins)
"""


def load_bindings(folder: Path) -> Any:
    """`import tensorrt`, with the stub built in `folder`."""
    if "tensorrt" in sys.modules:
        return sys.modules["tensorrt"]
    libraries = importlib.import_module("tensorrt_lean_libs")
    lean = next(Path(str(libraries.__file__)).parent.glob("libnvinfer_lean.so.*"))
    ctypes.CDLL(str(lean), ctypes.RTLD_GLOBAL)
    version = lean.name.rpartition(".")[2]
    source = folder / "stub.c"
    source.write_text(_STUB)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        soname = f"lib{name}.so.{version}"
        path = folder / soname
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(path), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the bindings' own source
        bindings = importlib.import_module("tensorrt_bindings")
        sys.modules["tensorrt"] = bindings
        sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")
    return bindings
