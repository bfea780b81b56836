"""A bundle or an engine, loaded and run step by step: what onnxruntime and TensorRT have in common."""

__all__ = ["Session", "checked_call", "open_folder"]

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from doge_export.bundle import ENGINE_MANIFEST, Bundle
from doge_export.errors import DogeExportError
from doge_export.runtime.cache import Cache
from doge_export.runtime.decoder import TokenDecoder


class Session(ABC):
    """What is loaded from `bundle`, which is an engine's folder too."""

    bundle: Bundle

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
        opened = bundle if isinstance(bundle, Bundle) else open_folder(bundle)
        if opened.compiled:
            from doge_export.runtime.tensorrt import TensorRTSession
            from doge_export.tensorrt.folder import Engine

            assert isinstance(opened, Engine)
            return TensorRTSession.load_engine(opened)
        from doge_export.runtime.onnx_session import OnnxSession

        return OnnxSession.open(opened, threads, native)

    @property
    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Of what runs it."""

    @property
    def max_batch(self) -> int | None:
        """The most rows of a call; None where there is no limit."""
        return None

    @property
    def candidates(self) -> int:
        """How many of the best tokens a `decoder` gives; 0 where there is none."""
        return 0

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


def open_folder(path: Path | str) -> Bundle:
    """A bundle that `export` wrote, or an engine that `build-engine` wrote.

    Raises:
        DogeExportError: it is neither, or damaged.
    """
    if not (Path(path) / ENGINE_MANIFEST).is_file():
        return Bundle.open(path)
    from doge_export.tensorrt.folder import Engine

    return Engine.open(path)


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
