"""Decoding with a cache written in place: one conversation on the graph that gives the best tokens.

The cache is static, a slot a position, or bounded: at most keep_window_size keys, however long the text.
"""

__all__ = ["TokenDecoder"]

from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import DecodeSpec
from doge_export.runtime import tensors
from doge_export.runtime.cache import check_room
from doge_export.runtime.cache_arrays import bind_cache, empty_cache
from doge_export.runtime.draws import Draws

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

#: A cache without a fixed length starts with this many slots and doubles, a bounded one until it has all it
#: ever needs: a copy now and then.
_SLOTS = 256


class TokenDecoder:
    """Decodes one batch of rows on a loaded `decode.onnx`, from the first token on.

    It needs the native kernels, which write the new keys' slots of the cache and no others. A call with one
    token changes numbers in memory that is bound once, and runs. Not for two threads at once.
    """

    def __init__(self, graph: Any, spec: DecodeSpec, batch: int) -> None:
        self._graph, self._spec, self._batch = graph, spec, batch
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._optional = {tensor.name: tensor.dtype for tensor in spec.optional_inputs}
        self._cache: dict[str, npt.NDArray[Any]] = {}
        self._slots = 0
        # (steps, whether they are drawn) -> what is bound for a call with one token.
        self._steady: dict[tuple[int, bool], _Bound] = {}
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
        draws: Draws | None = None,
    ) -> tuple[Ids, Logits]:
        """Run `input_ids` [batch, sequence] after what came before; `real` marks with 0 what is padding. Then
        go on alone, with the best token after the last, until there are `steps` new ones. `rope_length`: see
        Session.step; for a bounded cache alone. With `draws` the tokens are drawn, which the spec must know.

        Returns: token ids [batch, steps, best], best first and the lower id first among equals, and their
        logits; of one step there are the spec's `count`, of several, or drawn, one each. All but the last of
        the new tokens are in the cache. Both arrays are overwritten by a later call.

        Raises:
            DogeExportError: the tokens do not fit in the cache.
        """
        sequence = input_ids.shape[1]
        needed = self.length + sequence + steps - 1
        max_slots = self._spec.cache.slots
        if (slots := needed if max_slots is None else min(needed, max_slots)) > self._slots:
            self._grow(slots)
        if real is not None and not self.streams:
            self._mask[:, self.length : self.length + sequence] = real
        if sequence != 1:
            bound = self._bind(sequence, steps, draws)
        elif (key := (steps, draws is not None)) in self._steady:
            bound = self._steady[key]
        else:
            bound = self._steady[key] = self._bind(1, steps, draws)
        if draws is not None:
            draws.bind(bound.binding, self._optional, bound.drawn)
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
        grown = empty_cache(self._spec, self._batch, slots)
        used = min(self.length, self._slots)
        for name, array in self._cache.items():
            grown[name][:, :, :, :used] = array[:, :, :, :used]
        self._cache = grown
        if not self.streams:
            # A slot that is not written yet is beyond every query; it needs no 0.
            mask = np.ones((self._batch, slots), np.int64)
            mask[:, : self.length] = self._mask[:, : self.length]
            self._mask = mask
        self._slots = slots
        self._steady.clear()

    def _bind(self, sequence: int, steps: int, draws: Draws | None) -> "_Bound":
        binding = self._graph.io_binding()
        count = self._spec.count if steps == 1 and draws is None else 1
        bound = _Bound(binding, self._batch, sequence, steps, count)
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
        bind_cache(binding, self._spec, self._cache)
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
        self.drawn: dict[str, npt.NDArray[Any]] = {}
