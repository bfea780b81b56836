"""What the rows of a pool take, and how large the pool may be."""

__all__ = ["PoolSizes"]

import math

from doge_export.core.bundle import DecodeSpec
from doge_export.runtime import tensors

_KEYS = 256  # a cache without a fixed length starts with so many keys a slot, and doubles

Layout = tuple[int, int]  # slots, and keys of each


class PoolSizes:
    """Keys and bytes of rows by their tokens. Every slot has the same number of keys, so that a pool takes
    slots times keys, of at most `limit` bytes; None is no limit."""

    def __init__(self, spec: DecodeSpec, limit: int | None = None) -> None:
        self.limit, self._length = limit, spec.cache.max_length
        #: The keys of a bounded cache at most; None where a row has a key for each token.
        self.most_keys = spec.cache.slots if spec.cache.kind == "bounded" else None
        specs = {tensor.name: tensor for tensor in spec.inputs}
        self.key_bytes = 0  # of one key in all layers and heads
        for name in spec.cache.inputs:
            layers, _, kv_heads, _, *more = specs[name].shape
            elements = math.prod(int(size) for size in (layers, kv_heads, *more))
            self.key_bytes += elements * tensors.ELEMENT_TYPES[specs[name].dtype][1]

    @property
    def most_tokens(self) -> int | None:
        """The tokens of the longest row that fits alone; None where any does."""
        if self.limit is None:
            return None
        keys = self.limit // self.key_bytes
        if self._length is not None:
            return self._length if keys >= self._length else 0
        if self.most_keys is not None and keys >= self.most_keys:
            return None
        return keys // _KEYS * _KEYS

    def used(self, tokens: int) -> int:
        """Return the keys that a row with so many tokens has."""
        return tokens if self.most_keys is None else min(tokens, self.most_keys)

    def keys(self, tokens: int) -> int:
        """Return the keys that its slot has at least."""
        if self._length is not None:
            return self._length
        rounded = max(1, -(-tokens // _KEYS)) * _KEYS
        return min(rounded, self.most_keys or rounded)

    def bytes(self, tokens: int) -> int:
        """Return what its slot takes."""
        return self.keys(tokens) * self.key_bytes

    def hold(self, slots: int, tokens: int) -> bool:
        """Whether there may be so many slots for rows of up to so many tokens."""
        return self.limit is None or slots * self.bytes(tokens) <= self.limit

    def layout(self, needed: Layout, wanted: Layout) -> Layout:
        """Return what is `wanted`, or as much of it as the limit lets beside what is `needed`."""
        if self.limit is None:
            return wanted
        most = self.limit // self.key_bytes
        keys = wanted[1] if needed[0] * wanted[1] <= most else needed[1]
        return max(needed[0], min(wanted[0], most // keys)), keys
