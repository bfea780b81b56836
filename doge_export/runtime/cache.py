"""The attention cache between two steps: one class a kind, one table."""

__all__ = [
    "CACHES",
    "BoundedCache",
    "Cache",
    "GrowingCache",
    "StaticCache",
    "TensorCache",
    "check_room",
    "new_cache",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Manifest, TensorSpec
from doge_export.core.errors import DogeExportError
from doge_export.runtime import tensors


class Cache(Protocol):
    """The state of attention between two steps, as every session sees it. A step gives a new one; the old one
    is spent then."""

    @property
    def length(self) -> int:
        """Positions written so far, padding included."""

    @property
    def capacity(self) -> int | None:
        """The most positions that may be fed; None where there is no limit."""

    @property
    def streams(self) -> bool:
        """Whether a long text read in pieces takes no more memory than a short one. Its attention_mask is
        that of the new tokens alone then."""


class TensorCache(Cache, Protocol):
    """A cache of onnxruntime's session, which also asks for its tensors."""

    def inputs(self, attention_mask: npt.NDArray[np.int64], sequence: int) -> Mapping[str, Any]:
        """The graph's inputs that depend on the kind of cache, for a step of `sequence` tokens.

        `attention_mask` is [batch, length + sequence], whatever the graph wants, or [batch, sequence] if it
        `streams`.

        Raises:
            DogeExportError: the step does not fit.
        """

    def outputs(self) -> Mapping[str, Any]:
        """Output name -> the tensor to write it to, None where onnxruntime shall make one."""

    def advanced(self, presents: Sequence[Any], sequence: int) -> Self:
        """The cache after a step that gave `presents`, in the order of `outputs`."""


@dataclass(frozen=True)
class GrowingCache:
    """Starts empty; each step gives tensors that are `sequence` longer."""

    manifest: Manifest
    past: tuple[Any, ...]
    length: int = 0
    capacity: int | None = None
    streams: bool = False

    @classmethod
    def empty(cls, manifest: Manifest, batch: int, in_place: bool = False) -> Self:
        """The cache before the first token. What grows cannot be written in place."""
        return cls(manifest, _allocate(manifest, batch, slots=0))

    def inputs(self, attention_mask: npt.NDArray[np.int64], sequence: int) -> Mapping[str, Any]:
        """See Cache."""
        past = dict(zip(self.manifest.cache.inputs, self.past, strict=True))
        return {"attention_mask": tensors.from_array(attention_mask), **past}

    def outputs(self) -> Mapping[str, Any]:
        """See Cache."""
        return dict.fromkeys(self.manifest.cache.outputs)

    def advanced(self, presents: Sequence[Any], sequence: int) -> Self:
        """See Cache."""
        return type(self)(self.manifest, tuple(presents), self.length + sequence)


@dataclass(frozen=True)
class StaticCache:
    """Buffers of a fixed number of slots; each step writes at `cache_position`.

    The graph reads one set of buffers and writes the other, and they change roles after the step: an
    operator may still read a slot that another one has overwritten when both are the same memory. Where
    the native kernels run there is one set only: they write the new slots and nothing else.
    """

    manifest: Manifest
    capacity: int
    batch: int
    past: tuple[Any, ...]
    present: tuple[Any, ...]
    length: int = 0
    streams: bool = False

    @classmethod
    def empty(cls, manifest: Manifest, batch: int, in_place: bool = False) -> Self:
        """The cache before the first token; `in_place`: the graph may write where it reads."""
        slots = manifest.cache.max_length
        if slots is None:
            raise DogeExportError("The manifest gives the static cache no max_length.", "Export it again.")
        past = _allocate(manifest, batch, slots)
        present = past if in_place else _allocate(manifest, batch, slots)
        return cls(manifest, slots, batch, past, present)

    def inputs(self, attention_mask: npt.NDArray[np.int64], sequence: int) -> Mapping[str, Any]:
        """See Cache."""
        needed = self.length + sequence
        check_room(needed, self.capacity)
        mask = np.zeros((self.batch, self.capacity), np.int64)
        mask[:, :needed] = attention_mask
        shape = _find(self.manifest, "cache_position").shape
        position = np.full(_resolve(shape, self.batch, self.capacity), self.length, np.int64)
        return {
            "attention_mask": tensors.from_array(mask),
            "cache_position": tensors.from_array(position),
            **dict(zip(self.manifest.cache.inputs, self.past, strict=True)),
        }

    def outputs(self) -> Mapping[str, Any]:
        """See Cache."""
        return dict(zip(self.manifest.cache.outputs, self.present, strict=True))

    def advanced(self, presents: Sequence[Any], sequence: int) -> Self:
        """See Cache."""
        return replace(self, past=self.present, present=self.past, length=self.length + sequence)


@dataclass(frozen=True)
class BoundedCache:
    """At most keep_window_size keys a kv head, however long the text.

    It starts empty and grows until then. Where the native kernels run it has all slots from the start, empty
    ones marked by the position -1, and a step of one token changes the one slot that it needs.
    """

    manifest: Manifest
    past: tuple[Any, ...]
    in_place: bool
    length: int = 0
    capacity: int | None = None
    streams: bool = True

    @classmethod
    def empty(cls, manifest: Manifest, batch: int, in_place: bool = False) -> Self:
        """The cache before the first token; `in_place`: the graph may write where it reads."""
        past = _allocate(manifest, batch, manifest.cache.slots or 0 if in_place else 0)
        return cls(manifest, past, in_place)

    def inputs(self, attention_mask: npt.NDArray[np.int64], sequence: int) -> Mapping[str, Any]:
        """See Cache."""
        past = dict(zip(self.manifest.cache.inputs, self.past, strict=True))
        return {"attention_mask": tensors.from_array(attention_mask), **past}

    def outputs(self) -> Mapping[str, Any]:
        """See Cache."""
        if self.in_place:
            return dict(zip(self.manifest.cache.outputs, self.past, strict=True))
        return dict.fromkeys(self.manifest.cache.outputs)

    def advanced(self, presents: Sequence[Any], sequence: int) -> Self:
        """See Cache."""
        past = self.past if self.in_place else tuple(presents)
        return replace(self, past=past, length=self.length + sequence)


class _CacheKind(Protocol):
    def empty(self, manifest: Manifest, batch: int, in_place: bool = False) -> TensorCache: ...


#: The manifest's cache kind -> its class.
CACHES: dict[str, _CacheKind] = {
    "growing": GrowingCache,
    "static": StaticCache,
    "bounded": BoundedCache,
}


def check_room(needed: int, capacity: int) -> None:
    """Raise DogeExportError where a static cache of `capacity` slots does not hold `needed` tokens."""
    if needed > capacity:
        raise DogeExportError(
            f"The bundle's static cache holds {capacity} tokens, and this needs {needed}.",
            f"Export with --max-length {needed} or more, or with --kv-cache growing.",
        )


def new_cache(manifest: Manifest, batch: int, in_place: bool = False) -> TensorCache:
    """An empty cache of the bundle's kind; `in_place`: the graph may write a fixed buffer where it reads it.

    Raises:
        DogeExportError: the kind or its dtype is not known to this version.
    """
    kind = manifest.cache.kind
    if kind not in CACHES:
        raise DogeExportError(
            f"The bundle's cache is of the kind {kind!r}, which this version cannot run.",
            f"Kinds: {', '.join(CACHES)}.",
        )
    return CACHES[kind].empty(manifest, batch, in_place)


def _allocate(manifest: Manifest, batch: int, slots: int) -> tuple[Any, ...]:
    specs = [_find(manifest, name) for name in manifest.cache.inputs]
    return tuple(
        tensors.filled(spec.dtype, _resolve(spec.shape, batch, slots), -1 if spec.dtype == "int64" else 0)
        for spec in specs
    )


def _find(manifest: Manifest, name: str) -> TensorSpec:
    for spec in manifest.inputs:
        if spec.name == name:
            return spec
    raise DogeExportError(f"The manifest names no graph input {name!r}.", "Export the model again.")


def _resolve(shape: Sequence[int | str], batch: int, slots: int) -> tuple[int, ...]:
    """Sizes for the symbolic dimensions: the first is the batch, any other the cache's length."""
    sizes = [dimension if isinstance(dimension, int) else slots for dimension in shape]
    if shape and not isinstance(shape[0], int):
        sizes[0] = batch
    return tuple(sizes)
