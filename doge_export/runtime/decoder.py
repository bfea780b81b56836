"""Decoding with a cache written in place: one conversation on the graph that gives the best tokens."""

__all__ = ["TokenDecoder"]

from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.bundle import DecodeSpec
from doge_export.errors import DogeExportError
from doge_export.runtime import tensors

Ids = npt.NDArray[np.int64]

#: A cache without a fixed length starts with this many slots and doubles: a copy now and then.
_SLOTS = 256


class TokenDecoder:
    """One batch of rows on a loaded `decode.onnx`, from the first token on.

    It needs the native kernels, which write the new slots of the cache and touch no others. A step of one
    token changes numbers in memory that is bound once, and runs. Not for two threads at once.
    """

    def __init__(self, graph: Any, spec: DecodeSpec, batch: int) -> None:
        self._graph, self._spec, self._batch = graph, spec, batch
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._cache: dict[str, npt.NDArray[Any]] = {}
        self._slots = 0
        self._steady: Any = None
        self._one: list[Ids] = []
        self._best: tuple[Ids, npt.NDArray[np.float32]] = (np.empty(0, np.int64), np.empty(0, np.float32))
        self._mask = np.empty((batch, 0), np.int64)
        self.length = 0

    @property
    def capacity(self) -> int | None:
        """The most positions it can hold; None where it grows."""
        return self._spec.cache.max_length

    def step(
        self, input_ids: Ids, position_ids: Ids, real: Ids | None = None
    ) -> tuple[Ids, npt.NDArray[np.float32]]:
        """Run `input_ids` [batch, sequence] after what came before; `real` marks with 0 what is padding.

        Returns: token ids [batch, count], best first and the lower id first among equals, and their logits.
        Both are overwritten by the next step.

        Raises:
            DogeExportError: the tokens do not fit in the cache.
        """
        sequence = input_ids.shape[1]
        if self.length + sequence > self._slots:
            self._grow(self.length + sequence)
        if real is not None:
            self._mask[:, self.length : self.length + sequence] = real
        if sequence != 1:
            self._run(self._bind(input_ids, position_ids, np.full(self._batch, self.length, np.int64)))
        else:
            if self._steady is None:
                self._one = {
                    name: np.empty((self._batch, 1), np.int64) for name in ("input_ids", "position_ids")
                }
                self._one["cache_position"] = np.empty(self._batch, np.int64)
                self._steady = self._bind(*self._one.values())
            one = self._one
            one["input_ids"][:], one["position_ids"][:], one["cache_position"][:] = (
                input_ids,
                position_ids,
                self.length,
            )
            self._run(self._steady)
        self.length += sequence
        return self._best

    def _grow(self, needed: int) -> None:
        capacity = self.capacity
        if capacity is not None and needed > capacity:
            raise DogeExportError(
                f"The bundle's static cache holds {capacity} tokens, and this needs {needed}.",
                f"Export with --max-length {needed} or more, or with --kv-cache growing.",
            )
        slots = (
            capacity if capacity is not None else max(_SLOTS, 2 * self._slots, -(-needed // _SLOTS) * _SLOTS)
        )
        for name in self._spec.cache.inputs:
            spec = self._specs[name]
            shape = [size if isinstance(size, int) else slots for size in spec.shape]
            shape[0] = self._batch
            grown = tensors.storage(spec.dtype, shape)
            if name in self._cache:
                grown[:, :, : self.length] = self._cache[name][:, :, : self.length]
            self._cache[name] = grown
        # A slot that is not written yet is beyond every query; it needs no 0.
        mask = np.ones((self._batch, slots), np.int64)
        mask[:, : self.length] = self._mask[:, : self.length]
        self._mask, self._slots, self._steady = mask, slots, None

    def _bind(self, input_ids: Ids, position_ids: Ids, cache_position: Ids) -> Any:
        binding = self._graph.io_binding()
        numbers = {
            "input_ids": np.ascontiguousarray(input_ids),
            "position_ids": np.ascontiguousarray(position_ids),
            "cache_position": cache_position,
            "attention_mask": self._mask,
        }
        for name, array in numbers.items():
            tensors.bind(binding.bind_input, name, "int64", array)
        cache = self._spec.cache
        for name, output in zip(cache.inputs, cache.outputs, strict=True):
            dtype = self._specs[name].dtype
            tensors.bind(binding.bind_input, name, dtype, self._cache[name])
            tensors.bind(binding.bind_output, output, dtype, self._cache[name])
        shape = (self._batch, self._spec.count)
        self._best = np.empty(shape, np.int64), np.empty(shape, np.float32)
        tensors.bind(binding.bind_output, "token_ids", "int64", self._best[0])
        tensors.bind(binding.bind_output, "token_logits", "float32", self._best[1])
        return binding, numbers, self._best  # what is bound must live as long

    def _run(self, bound: Any) -> None:
        binding, _, self._best = bound
        with tensors.memory_errors():
            self._graph.run_with_iobinding(binding)
