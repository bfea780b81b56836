"""A GPU for tests on machines that have none: fakes at the two seams, the driver and TensorRT's runtime.

The driver is `_driver.cc`, compiled. The runtime has the methods of TensorRT's bindings that the session
calls, and computes with onnxruntime, on the file that an engine was built from. All between them is what runs
on a GPU. That TensorRT's kernels compute the same is shown by no test that uses this: only a GPU can.
"""

import ctypes
import functools
import hashlib
import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from doge_export.core.bundle import ENGINE, Bundle, new_folder
from doge_export.engines import Engine
from doge_export.runtime.graph import fold_weights
from doge_export.runtime.tensorrt import loading
from doge_export.runtime.tensorrt.engine_folder import write_engine_folder
from doge_export.runtime.tensorrt.kinds import KINDS, Opened, open_kind
from doge_export.runtime.tensorrt.profiles import PROFILES, profiles

__all__ = [
    "FakeContext",
    "FakeEngine",
    "FakeGpu",
    "FakeRuntime",
    "compiled_driver",
    "make_gpu",
    "write_engine",
]

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


@functools.cache
def compiled_driver() -> Path:
    """The fake libcuda, in a folder that stays until the tests end."""
    triton = importlib.util.find_spec("triton")
    assert triton is not None and triton.origin is not None  # the extra `dev` brings it, and it CUDA's header
    headers = Path(triton.origin).parent / "backends/nvidia/include"
    folder = tempfile.TemporaryDirectory(prefix="doge-export-driver-")
    _folders.append(folder)
    path = Path(folder.name) / "libcuda.so.1"
    source = Path(__file__).parent / "_driver.cc"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-isystem", str(headers)]
    subprocess.run(["g++", *flags, "-o", str(path), str(source)], check=True)
    return path


_folders: list[Any] = []


def write_engine(
    bundle: Bundle, folder: Path, max_batch: int = 2, capabilities: tuple[str, ...] = ("8.9",)
) -> Engine:
    """The folder that build-engine writes, but for the engine: nothing here would read that."""
    opened = open_kind("tensorrt-rtx")
    with new_folder(folder) as partial:
        (partial / ENGINE).write_bytes(f"the engine of {bundle.path}".encode())
        write_engine_folder(partial, bundle, opened, capabilities, profiles(bundle.manifest, max_batch))
    return Engine.open(folder)


class FakeGpu:
    """A driver with one GPU, and TensorRT's runtime. Engines are known by their bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = ctypes.CDLL(str(compiled_driver()))
        self.driver.fake_held.restype = ctypes.c_size_t
        self.driver.fake_inside.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.driver.fake_capturing.argtypes = (ctypes.c_void_p,)
        self.driver.fake_device.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
        self.driver.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, _CALLBACK, ctypes.c_void_p)
        self.set()
        self.capturable = True
        self.refuses: str | None = None
        self.errors: list[BaseException] = []
        self.runs: list[tuple[int, ...]] = []  # shapes of input_ids
        self.known: dict[str, tuple[Bundle, int]] = {}
        self.real = open_kind("tensorrt-rtx").trt
        monkeypatch.setattr("doge_export.runtime.tensorrt.driver.LIBRARY", str(compiled_driver()))
        monkeypatch.setattr(loading, "open_kind", lambda name: Opened(KINDS[name], self))

    #: What the session names of the module beside the runtime is the real one's.
    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set(self, devices: int = 1, capability: int = 89, memory: int = 1 << 62) -> None:
        """What the driver finds."""
        self.driver.fake_device(devices, capability, memory)

    def knows(self, engine: Engine, bundle: Bundle) -> Engine:
        """`engine` was built from `bundle`."""
        digest = hashlib.sha256(engine.model_path.read_bytes()).hexdigest()
        self.known[digest] = (bundle, engine.max_batch)
        return engine

    def Runtime(self, log: Any) -> "FakeRuntime":
        """As the bindings have it."""
        return FakeRuntime(self, log)

    def counts(self) -> dict[str, int]:
        """Of captures and launches since the process began; bytes and graphs that are there now."""
        driver = self.driver
        return {
            "captures": driver.fake_captures(),
            "launches": driver.fake_launches(),
            "graphs": driver.fake_graphs(),
            "held": driver.fake_held(),
        }


class FakeRuntime:
    """trt.Runtime."""

    def __init__(self, gpu: FakeGpu, log: Any) -> None:
        self._gpu, self._log = gpu, log

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "FakeEngine | None":
        found = self._gpu.known.get(hashlib.sha256(serialized_engine).hexdigest())
        if found is None:  # the real one's words, and its verdict
            return self._gpu.real.Runtime(self._log).deserialize_cuda_engine(serialized_engine)
        return FakeEngine(self._gpu, self._log, *found)


class FakeOptions:
    """trt.IRuntimeConfig."""

    def __init__(self) -> None:
        self.allocation: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy


class FakeEngine:
    """trt.ICudaEngine. Keys and values are updated in place, as the parsed network has it."""

    def __init__(self, gpu: FakeGpu, log: Any, bundle: Bundle, max_batch: int) -> None:
        self.gpu, self.log, self.bundle = gpu, log, bundle
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        fold_weights(options, bundle)
        self.session = onnxruntime.InferenceSession(str(bundle.model_path), options)
        manifest = bundle.manifest
        self.specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        self.outputs = [spec.name for spec in manifest.outputs]
        self.profiles = profiles(manifest, max_batch)
        self.num_io_tensors = len(self.specs)
        self.num_optimization_profiles = len(PROFILES)

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        in_place = name.startswith("present.") and name.endswith((".key", ".value"))
        return name.replace("present.", "past_key_values.") if in_place else None

    def create_runtime_config(self) -> FakeOptions:
        return FakeOptions()

    def create_execution_context(self, runtime_config: FakeOptions) -> "FakeContext":
        assert runtime_config.allocation is self.gpu.real.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        return FakeContext(self, runtime_config)


class FakeContext:
    """trt.IExecutionContext."""

    def __init__(self, engine: FakeEngine, options: FakeOptions) -> None:
        self._engine, self._gpu, self._options = engine, engine.gpu, options
        self._profile: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._prepared: dict[str, tuple[int, ...]] = {}
        self._captured: list[Any] = []  # callbacks are kept alive here: C++ does not
        self._last: Any = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._engine.profiles[profile_index]
        eager = self._gpu.real.DynamicShapesKernelSpecializationStrategy.EAGER
        assert (self._options.dynamic_shapes_kernel_specialization_strategy is eager) == (profile_index == 1)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._profile.inputs[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine.specs

    def is_stream_capturable(self, stream: int) -> bool:
        return self._gpu.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, gpu = self._engine, self._gpu
        if gpu.refuses is not None:
            self._engine.log.log(gpu.real.ILogger.ERROR, gpu.refuses)
            return False
        for output in engine.outputs:
            aliased = engine.get_aliased_input_tensor(output)
            if aliased is not None:
                assert self._addresses[output] == self._addresses[aliased], output
            else:
                others = [at for name, at in self._addresses.items() if name != output]
                assert self._addresses[output] not in others, output
        capturing = gpu.driver.fake_capturing(stream_handle)
        if capturing:  # TensorRT prepares a shape in the first call with it, and that cannot be captured
            assert self._prepared == self._shapes, "captured before it was run"
        self._prepared = dict(self._shapes)
        call = self._call(dict(self._shapes), dict(self._addresses))
        if capturing:
            self._captured.append(call)
        else:
            self._last = call
        assert gpu.driver.cuLaunchHostFunc(stream_handle, call, None) == 0
        return True

    def _call(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> Any:
        engine, gpu = self._engine, self._gpu

        def run(_: Any) -> None:
            try:
                gpu.runs.append(shapes["input_ids"])
                fed = {
                    name: _at(gpu, addresses[name], engine.specs[name].dtype, shape).copy()
                    for name, shape in shapes.items()
                }
                for name, result in zip(engine.outputs, engine.session.run(engine.outputs, fed), strict=True):
                    _at(gpu, addresses[name], engine.specs[name].dtype, result.shape)[:] = result
            except BaseException as error:
                gpu.errors.append(error)

        return _CALLBACK(run)


def _at(gpu: FakeGpu, address: int, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    of = np.dtype(_TYPES[dtype])
    size = int(np.prod(shape)) * of.itemsize
    assert gpu.driver.fake_inside(address, size), f"{address:x} + {size} is no memory of the GPU"
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), of).reshape(shape)


def make_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """For a fixture: nothing went wrong on the stream, where no exception can pass."""
    gpu = FakeGpu(monkeypatch)
    yield gpu
    gpu.set()
    if gpu.errors:
        raise gpu.errors[0]
