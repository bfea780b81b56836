"""A bundle or an engine, loaded and run step by step: what onnxruntime and TensorRT have in common."""

__all__ = ["Session", "checked_call"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime.cache import Cache
from doge_export.runtime.decoder import TokenDecoder
from doge_export.runtime.slot_pool import SlotPool


class Session(ABC):
    """A loaded bundle, or a loaded engine: `bundle` is the folder of either."""

    bundle: Bundle
    #: What `open` does. doge_export.runtime.opening sets it, which knows the implementations of this class.
    opener: "ClassVar[Callable[[Bundle | Path | str, int | None, bool], Session]]"

    @classmethod
    def open(cls, bundle: Bundle | Path | str, threads: int | None = None, native: bool = True) -> "Session":
        """Run the bundle, or the folder, in onnxruntime with `threads` threads, or as many as it chooses; an
        engine in TensorRT, which has no use for them.

        The native library is registered where it is there; where it is missing, and the bundle could use
        it, one warning is logged. `native` False leaves it out.

        Raises:
            DogeExportError: the folder is neither; or onnxruntime refuses the graph or the library, or it is
                not the graph that the manifest describes (where the bundle has two, `load` and the first step
                raise it); or the engine cannot run here.
        """
        return cls.opener(bundle, threads, native)

    @property
    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """The versions of the runtime: name -> version."""

    @property
    def max_batch(self) -> int | None:
        """The most rows of a call; None where there is no limit."""
        return None

    @property
    def candidates(self) -> int:
        """How many of the best tokens a `decoder` gives; 0 where there is none."""
        return 0

    @property
    def draws(self) -> bool:
        """Whether a `decoder` can draw tokens."""
        return False

    @property
    def library(self) -> Path | None:
        """The native library, where it is in use."""
        return None

    def load(self, tokens: bool = False) -> None:  # noqa: B027 - what `open` loads needs nothing more
        """Load the graph for `step`, or for `decoder`, now and not at the first step.

        Raises:
            DogeExportError: it cannot be loaded.
        """

    def load_for_text(self) -> None:
        """Load the graph that `generate` runs where it can, so that the first text does not wait for it.

        Raises:
            DogeExportError: it cannot be loaded.
        """
        self.load(tokens=self.candidates > 0)

    def decoder(self, batch: int) -> TokenDecoder:
        """A new conversation of `batch` rows on the graph that gives the best tokens alone.

        Raises:
            DogeExportError: there is no such graph.
        """
        raise DogeExportError("The bundle has no graph that gives tokens.", "Export the model again.")

    @property
    def pools(self) -> bool:
        """Whether there is a `pool`."""
        return False

    def pool(self, slots: int = 4, limit: int | None = None) -> SlotPool:
        """An empty pool of rows that come and go, on the graph that gives the best tokens alone, of up to
        `limit` bytes.

        Raises:
            DogeExportError: there is no such graph, it takes no ragged batch, or its router mixes the tokens
                of a call, so that a row would not be what it is alone.
        """
        raise DogeExportError("The bundle has no graph that gives tokens.", "Export the model again.")

    @abstractmethod
    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` rows."""

    @abstractmethod
    def step(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
        rope_length: int = 0,
        last: bool = False,
    ) -> tuple[npt.NDArray[np.float32], Cache]:
        """Run `input_ids` [batch, sequence] after what `cache` holds.

        `attention_mask` is [batch, cache.length + sequence], but [batch, sequence] for a cache that
        `streams`; 0 marks padding. `rope_length`: where a text is read in pieces into such a cache, its whole
        length, so that the rope turns as in one call; a graph whose rope does not depend on it does not care.
        `last`: only the logits of the last position are wanted.

        Returns:
            float32 logits [batch, sequence, vocab], or [batch, 1, vocab], and the cache to go on with. The
            one given is spent.

        Raises:
            DogeExportError: the tokens do not fit in the cache.
        """


def checked_call(
    input_ids: npt.NDArray[np.int64],
    attention_mask: npt.NDArray[np.int64],
    position_ids: npt.NDArray[np.int64],
    cache: Cache,
) -> tuple[int, int]:
    """The batch and the number of new tokens of a `step`, once the shapes are known to fit together."""
    batch, sequence = input_ids.shape
    if position_ids.shape != input_ids.shape:
        raise ValueError(f"position_ids are {position_ids.shape}, input_ids {input_ids.shape}")
    covered = sequence if cache.streams else cache.length + sequence
    if attention_mask.shape != (batch, covered):
        raise ValueError(f"attention_mask is {attention_mask.shape}, not {(batch, covered)}")
    return batch, sequence
