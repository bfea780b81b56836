"""A slot: the memory of one conversation on the GPU, bound once, and its decode step as a CUDA graph."""

__all__ = ["Slot"]

import contextlib
import ctypes
import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Manifest, TensorSpec
from doge_export.core.errors import DogeExportError
from doge_export.runtime import tensors
from doge_export.runtime.tensorrt.driver import Cuda, Graph, HostMemory, Memory
from doge_export.runtime.tensorrt.loading import Loaded

Ids = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)

_ALIGNMENT = 256  # bytes, as the driver's own allocations have


class Slot:
    """`batch` rows: inputs, caches and the logits of one token, at addresses that never change.

    A cache that the engine updates in place is one buffer, input and output. One that it gives anew (dt,
    which is small) is copied back after each call, all layers at once: those buffers lie side by side.

    What a decode step does, copies from and to the host included, is captured as a CUDA graph at the second
    such step and launched from then on: the first lets TensorRT prepare what must not happen in a capture.
    The addresses stay, and so it is never captured again. Where TensorRT cannot be captured, each step is put
    on the stream call by call.
    """

    def __init__(self, loaded: Loaded, manifest: Manifest, batch: int) -> None:
        self.batch, self.length = batch, 0
        self._loaded, self._manifest = loaded, manifest
        self._capacity = manifest.cache.max_length or 0
        cuda = loaded.cuda
        self._cuda: Cuda = cuda
        cache = manifest.cache
        named = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        self._specs = named

        # Caches: name -> address.
        self._addresses: dict[str, int] = {}
        pairs = list(zip(cache.inputs, cache.outputs, strict=True))
        placed = [(i, o) for i, o in pairs if loaded.aliased(o) == i]
        carried = [pair for pair in pairs if pair not in placed]
        sizes = {name: self._size(named[name], 1) for name in cache.inputs}
        self._caches = [
            self._block({i: sizes[i] for i, _ in placed}),
            self._block({i: sizes[i] for i, _ in carried}),
        ]
        self._given = self._block({o: sizes[i] for i, o in carried})
        self._addresses |= {o: self._addresses[i] for i, o in placed}

        # What comes from the host: as many tokens as the cache holds.
        self._fed = [spec for spec in manifest.inputs if spec.name not in cache.inputs]
        self._staged: dict[str, HostMemory] = {}
        memory: list[Memory] = []
        for spec in self._fed:
            size = self._size(spec, self._capacity)
            self._staged[spec.name] = cuda.allocate_host(size)
            memory.append(cuda.allocate(size))
            self._addresses[spec.name] = memory[-1].address
        logits = named["logits"]
        self._host_logits = cuda.allocate_host(self._size(logits, 1))
        memory.append(cuda.allocate(self._size(logits, 1)))
        self._addresses["logits"] = memory[-1].address
        self._memory = memory

        self._context = loaded.new_context("decode")
        self._bind(self._context, 1)
        self._graph: Graph | None = None
        self._prepared = self._tried = False

    def reset(self) -> None:
        """Begin a new conversation: caches are zero, as the graph's contract wants them."""
        self.length = 0
        for block in self._caches:
            if block is not None:
                self._cuda.zero(block.address, block.size)
        self._cuda.synchronize()

    def set_inputs(self, input_ids: Ids, attention_mask: Ids, position_ids: Ids) -> None:
        """Copy a call's inputs to page-locked memory. `attention_mask` is [batch, length + sequence]."""
        mask = np.zeros((self.batch, self._capacity), np.int64)
        mask[:, : attention_mask.shape[1]] = attention_mask
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": mask,
            "cache_position": np.full(self.batch, self.length, np.int64),
        }
        for spec in self._fed:
            self._host(self._staged[spec.name], spec, input_ids.shape[1])[:] = inputs[spec.name]

    def decode(self) -> npt.NDArray[np.float32]:
        """Run a call of one token a row on the inputs set: returns logits [batch, 1, vocab]."""
        if self._prepared and not self._tried:
            self._tried, self._graph = True, self._captured()
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._enqueue()
        self._cuda.synchronize()
        self._prepared = True
        spec = self._specs["logits"]
        return tensors.to_float32(self._host(self._host_logits, spec, 1).copy(), spec.dtype)

    def prefill(self, context: Any, sequence: int, logits: Memory, last: bool) -> npt.NDArray[np.float32]:
        """Run a call of `sequence` tokens a row on the inputs set, in another context. Returns logits [batch,
        sequence, vocab], which `logits` has room for, or of the `last` token [batch, 1, vocab]."""
        self._bind(context, sequence)
        context.set_tensor_address("logits", logits.address)
        spec = self._specs["logits"]
        array = tensors.storage(spec.dtype, self._shape(spec, 1 if last else sequence))
        self._copy_in(sequence)
        self._loaded.run(context)
        self._carry()
        if last:
            row, token = array[0].nbytes * sequence, array[0].nbytes
            for at in range(self.batch):
                source = logits.address + at * row + (sequence - 1) * token
                self._cuda.copy_out(array[at].ctypes.data, source, token)
        else:
            self._cuda.copy_out(array.ctypes.data, logits.address, array.nbytes)
        self._cuda.synchronize()
        return tensors.to_float32(array, spec.dtype)

    def logits_size(self, sequence: int) -> int:
        """Bytes of so many tokens' logits."""
        return self._size(self._specs["logits"], sequence)

    def _captured(self) -> Graph | None:
        """The decode step as a graph; None where TensorRT cannot be captured."""
        able = getattr(self._context, "is_stream_capturable", None)  # of TensorRT for RTX alone
        if able is not None and not able(self._cuda.stream):
            return None
        self._cuda.begin_capture()
        try:
            self._enqueue()
        except (DogeExportError, RuntimeError) as error:
            with contextlib.suppress(RuntimeError):  # which the end of it says once more
                self._cuda.end_capture()
            _log.warning("A step cannot be a CUDA graph: %s Each is launched call by call, slower.", error)
            return None
        return self._cuda.end_capture()

    def _enqueue(self) -> None:
        self._copy_in(1)
        self._loaded.run(self._context)
        self._carry()
        host = self._host_logits
        self._cuda.copy_out(host.address, self._addresses["logits"], host.size)

    def _copy_in(self, sequence: int) -> None:
        for spec in self._fed:
            source = self._staged[spec.name].address
            self._cuda.copy_in(self._addresses[spec.name], source, self._size(spec, sequence))

    def _carry(self) -> None:
        """Copy the caches that the engine gave anew to where it reads them in the next call."""
        carried = self._caches[1]
        if carried is not None and self._given is not None:
            self._cuda.copy(carried.address, self._given.address, carried.size)

    def _bind(self, context: Any, sequence: int) -> None:
        """Set shapes and addresses of all tensors, for calls of `sequence` tokens."""
        for spec in self._manifest.inputs:
            if not context.set_input_shape(spec.name, self._shape(spec, sequence)):
                raise AssertionError(f"{spec.name} {self._shape(spec, sequence)} is outside of the profile")
        for name, address in self._addresses.items():
            if not context.set_tensor_address(name, address):
                raise AssertionError(f"{name} takes no address")

    def _block(self, sizes: dict[str, int]) -> Memory | None:
        """Allocate memory with room for all of `sizes` (name -> bytes), and note where each begins."""
        if not sizes:
            return None
        starts, end = [], 0
        for size in sizes.values():
            starts.append(end)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        block = self._cuda.allocate(end)
        self._addresses |= {name: block.address + at for name, at in zip(sizes, starts, strict=True)}
        return block

    def _shape(self, spec: TensorSpec, sequence: int) -> tuple[int, ...]:
        known: dict[int | str, int] = {"batch": self.batch, "sequence": sequence}
        return tuple(dim if isinstance(dim, int) else known[dim] for dim in spec.shape)

    def _size(self, spec: TensorSpec, sequence: int) -> int:
        return math.prod(self._shape(spec, sequence)) * tensors.ELEMENT_TYPES[spec.dtype][1]

    def _host(self, memory: HostMemory, spec: TensorSpec, sequence: int) -> npt.NDArray[Any]:
        """The first bytes of page-locked memory, as an array; the memory must outlive it."""
        raw = (ctypes.c_ubyte * self._size(spec, sequence)).from_address(memory.address)
        return tensors.over(raw, spec.dtype, self._shape(spec, sequence))
