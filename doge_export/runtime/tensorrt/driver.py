"""The CUDA driver of this machine, as far as an engine needs it: memory, copies, a stream, a graph.

It is called by ctypes: the driver is there wherever a GPU is, and its functions keep their meaning from one
version to the next, where bindings from PyPI would be one more package, of one version of CUDA. Its primary
context is the one that TensorRT's own CUDA runtime works in. Never run on a GPU: the tests run it against a
library with the same functions, which CUDA's own header is compiled into.
"""

__all__ = ["LIBRARY", "Cuda", "Graph", "HostMemory", "Memory"]

import ctypes
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from doge_export.core.errors import DogeExportError

LIBRARY = "libcuda.so.1"
_WITHOUT = "Without one, run the bundle that the engine was built from."

_OUT_OF_MEMORY = 2  # CUresult
_CAPABILITY = (75, 76)  # CUdevice_attribute: major and minor
_NON_BLOCKING = 1  # CUstream_flags
_THREAD_LOCAL = 1  # CUstreamCaptureMode: what other threads do meanwhile does not end the capture
#: Name in the library -> types of its arguments. Each gives a CUresult.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class Cuda:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves, and one stream on it.

    `name`: the GPU's. `capability`: "8.9". `driver`: the newest CUDA that the driver runs, "13.0".
    `stream`: for TensorRT; all copies go there too, so that they happen in their order.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        if code := library.cuInit(0):
            raise DogeExportError(
                f"The NVIDIA driver finds no GPU here: {self._said(code)}.",
                _WITHOUT,
            )
        number, device, context, stream = c_int(), c_int(), c_void_p(), c_void_p()
        self._call("cuDriverGetVersion", byref(number))
        self.driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
        self._call("cuDeviceGet", byref(device), 0)
        text = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", text, len(text), device)
        self.name = text.value.decode("utf-8", "replace")
        parts = []
        for attribute in _CAPABILITY:
            self._call("cuDeviceGetAttribute", byref(number), attribute, device)
            parts.append(str(number.value))
        self.capability = ".".join(parts)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context
        self.enter()
        self._call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self.stream = int(stream.value or 0)

    @classmethod
    def open(cls) -> "Cuda":
        """The driver and its first GPU.

        Raises:
            DogeExportError: there is no driver, or it finds no GPU.
        """
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise DogeExportError(
                f"There is no NVIDIA driver here ({LIBRARY}), and an engine runs on a GPU alone.",
                _WITHOUT,
            ) from None
        try:
            return cls(library)
        except AttributeError as error:
            raise DogeExportError(
                f"The NVIDIA driver here is too old: {error}.", "Install one for CUDA 12 or newer."
            ) from None

    def enter(self) -> None:
        """Let the calling thread use the GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that are free."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, size: int) -> "Memory":
        """Allocate `size` bytes on the GPU.

        Raises:
            DogeExportError: there are not so many.
        """
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), size)
        return Memory(self, address.value, size)

    def allocate_host(self, size: int) -> "HostMemory":
        """Allocate `size` bytes of page-locked memory, which the GPU copies from and to by itself."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), size, 0)
        return HostMemory(self, int(address.value or 0), size)

    def copy_in(self, target: int, source: int, size: int) -> None:
        """Copy from the host to the GPU. Like all that follows it happens when its turn comes on the
        stream."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, size, self.stream)

    def copy_out(self, target: int, source: int, size: int) -> None:
        """Copy from the GPU to the host."""
        self._call("cuMemcpyDtoHAsync_v2", target, source, size, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy from the GPU to the GPU."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, size, self.stream)

    def zero(self, target: int, size: int) -> None:
        """Write zeros on the GPU."""
        self._call("cuMemsetD8Async", target, 0, size, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self._call("cuStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """Begin to record what is put on the stream, as a graph; nothing of it is done."""
        self._call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)

    def end_capture(self) -> "Graph":
        """End the recording; returns the graph of what was put on the stream, with its addresses.

        Raises:
            RuntimeError: something of it cannot be captured.
        """
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamEndCapture", self.stream, byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return Graph(self, int(executable.value or 0))

    def launch(self, graph: "Graph") -> None:
        """Put the whole graph on the stream."""
        self._call("cuGraphLaunch", graph.handle, self.stream)

    def release(self, function: str, handle: int) -> None:
        """Free something of the driver's; for finalizers, which run in any thread."""
        self.enter()
        self._call(function, handle)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise DogeExportError(
                "The memory of the GPU does not suffice.",
                "A smaller --max-batch at build-engine, or --max-length or --dtype at export, needs less.",
            )
        if code:
            raise RuntimeError(f"{name}: {self._said(code)}")

    def _said(self, code: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorString(code, byref(text))
        return (text.value or b"").decode("utf-8", "replace") or f"CUDA error {code}"


class _Owned:
    """Something of the driver's that is freed with its last reference."""

    def __init__(self, cuda: Cuda, function: str, handle: int) -> None:
        # At the end of the process the driver goes first, and everything with it.
        weakref.finalize(self, cuda.release, function, handle).atexit = False


class Memory(_Owned):
    """`size` bytes at `address` on the GPU."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        super().__init__(cuda, "cuMemFree_v2", address)
        self.address, self.size = address, size


class HostMemory(_Owned):
    """`size` bytes at `address` on the host."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        super().__init__(cuda, "cuMemFreeHost", address)
        self.address, self.size = address, size


class Graph(_Owned):
    """A captured graph, ready to be launched."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, "cuGraphExecDestroy", handle)
        self.handle = handle
