"""Decoding with a cache written in place: one conversation on the graph that gives the best tokens.

The cache is static, a slot a position, or bounded: at most keep_window_size keys, however long the text.
"""

__all__ = ["TokenDecoder"]

from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.bundle import DecodeSpec
from doge_export.runtime import tensors
from doge_export.runtime.cache import check_room

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

#: A cache without a fixed length starts with this many slots and doubles, a bounded one until it has all it
#: ever needs: a copy now and then.
_SLOTS = 256


class TokenDecoder:
    """One batch of rows on a loaded `decode.onnx`, from the first token on.

    It needs the native kernels, which write the new keys' slots of the cache and no others. A call with one
    token changes numbers in memory that is bound once, and runs. Not for two threads at once.
    """

    def __init__(self, graph: Any, spec: DecodeSpec, batch: int) -> None:
        self._graph, self._spec, self._batch = graph, spec, batch
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._cache: dict[str, npt.NDArray[Any]] = {}
        self._slots = 0
        self._steady: dict[int, _Bound] = {}  # steps -> what is bound for a call with one token
        self._mask = np.empty((batch, 0), np.int64)  # of a static cache
        self.streams = spec.cache.kind == "bounded"
        self.length = 0

    @property
    def capacity(self) -> int | None:
        """The most positions it can hold; None where it grows."""
        return self._spec.cache.max_length

    def step(
        self,
        input_ids: Ids,
        position_ids: Ids,
        real: Ids | None = None,
        steps: int = 1,
        rope_length: int = 0,
    ) -> tuple[Ids, Logits]:
        """Run `input_ids` [batch, sequence] after what came before; `real` marks with 0 what is padding. Then
        go on alone, with the best token after the last, until there are `steps` new ones. `rope_length`: see
        Session.step; for a bounded cache alone.

        Returns: token ids [batch, steps, best], best first and the lower id first among equals, and their
        logits; of one step there are the spec's `count`, of several the best one each. All but the last of
        the new tokens are in the cache. Both arrays are overwritten by a later call.

        Raises:
            DogeExportError: the tokens do not fit in the cache.
        """
        sequence = input_ids.shape[1]
        needed = self.length + sequence + steps - 1
        most = self._spec.cache.slots
        if (slots := needed if most is None else min(needed, most)) > self._slots:
            self._grow(slots)
        if real is not None and not self.streams:
            self._mask[:, self.length : self.length + sequence] = real
        if sequence != 1:
            bound = self._bind(sequence, steps)
        elif steps in self._steady:
            bound = self._steady[steps]
        else:
            bound = self._steady[steps] = self._bind(1, steps)
        bound.ids[:], bound.positions[:] = input_ids, position_ids
        bound.slot.fill(self.length)
        bound.real[:] = 1 if real is None else real
        bound.whole.fill(rope_length)
        with tensors.memory_errors():
            self._graph.run_with_iobinding(bound.binding)
        self.length = needed
        return bound.tokens, bound.logits

    def _grow(self, needed: int) -> None:
        capacity = self.capacity
        if capacity is not None:
            check_room(needed, capacity)
        slots = (
            capacity if capacity is not None else max(_SLOTS, 2 * self._slots, -(-needed // _SLOTS) * _SLOTS)
        )
        slots = min(slots, self._spec.cache.slots or slots)
        for name in self._spec.cache.inputs:
            spec = self._specs[name]
            # Layers, batch, kv_heads, slots and, of keys and values, head_dim.
            shape = (spec.shape[0], self._batch, spec.shape[2], slots, *spec.shape[4:])
            grown = tensors.storage(spec.dtype, [int(size) for size in shape])
            if spec.dtype == "int64":  # a position: the slot is empty
                grown.fill(-1)
            if name in self._cache:
                used = min(self.length, self._slots)
                grown[:, :, :, :used] = self._cache[name][:, :, :, :used]
            self._cache[name] = grown
        if not self.streams:
            # A slot that is not written yet is beyond every query; it needs no 0.
            mask = np.ones((self._batch, slots), np.int64)
            mask[:, : self.length] = self._mask[:, : self.length]
            self._mask = mask
        self._slots = slots
        self._steady.clear()

    def _bind(self, sequence: int, steps: int) -> "_Bound":
        binding, cache = self._graph.io_binding(), self._spec.cache
        bound = _Bound(binding, self._batch, sequence, steps, self._spec.count if steps == 1 else 1)
        for name, array in (
            ("input_ids", bound.ids),
            ("position_ids", bound.positions),
            ("cache_position", bound.slot),
            ("steps", bound.steps),
            ("rope_length", bound.whole),
            ("attention_mask", bound.real if self.streams else self._mask),
        ):
            if name in self._specs:
                tensors.bind(binding.bind_input, name, "int64", array)
        for name, output in zip(cache.inputs, cache.outputs, strict=True):
            dtype = self._specs[name].dtype
            tensors.bind(binding.bind_input, name, dtype, self._cache[name])
            tensors.bind(binding.bind_output, output, dtype, self._cache[name])
        tensors.bind(binding.bind_output, "token_ids", "int64", bound.tokens)
        tensors.bind(binding.bind_output, "token_logits", "float32", bound.logits)
        return bound


class _Bound:
    """An IOBinding, and the memory behind what is in it beside the cache."""

    def __init__(self, binding: Any, batch: int, sequence: int, steps: int, count: int) -> None:
        self.binding = binding
        self.ids, self.positions = (np.empty((batch, sequence), np.int64) for _ in range(2))
        self.slot, self.steps = np.empty(batch, np.int64), np.array(steps, np.int64)
        self.real, self.whole = np.ones((batch, sequence), np.int64), np.array(0, np.int64)
        self.tokens: Ids = np.empty((batch, steps, count), np.int64)
        self.logits: Logits = np.empty((batch, steps, count), np.float32)
