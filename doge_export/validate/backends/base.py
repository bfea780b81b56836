"""The one interface of what can be compared: it takes a schedule of calls and gives a run."""

from abc import ABC, abstractmethod
from collections.abc import Container
from enum import Flag, StrEnum, auto
from typing import ClassVar

from doge_export.validate.run import BestTokens, Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["Backend", "BackendName", "DecodeBackend", "Shows"]


class BackendName(StrEnum):
    """One row each; checks are told apart by it."""

    REFERENCE = "reference"
    FUNCTION_BODIES = "function bodies"
    KERNELS = "native kernels"
    DECODE_GRAPH = "decode graph"
    DECODE_KERNELS = "decode graph on native kernels"
    ENGINE = "engine"


class Shows(Flag):
    """What a backend's runs hold: logits of every compared position, or the best token of every call; the
    keys and experts that were chosen; what goes from part to part."""

    LOGITS = auto()
    BEST = auto()
    SELECTION = auto()
    TRACE = auto()


class Backend(ABC):
    """Something that computes a model's next tokens. `suffix` goes behind a schedule's name where a check of
    this backend is shown."""

    name: ClassVar[BackendName]
    suffix: ClassVar[str] = ""

    @property
    @abstractmethod
    def shows(self) -> Shows:
        """What its runs hold."""

    @abstractmethod
    def run(self, schedule: Schedule, tokens: Tokens, *, trace: Container[str] | None = None) -> Run:
        """Make the calls of `schedule` one after another, from an empty cache. `trace`: the parts whose
        results are recorded, of a backend that shows them; None is none.

        A call that onnxruntime refuses ends the run: `stopped` says with which words, and what that call and
        those after it would have given is NaN.
        """


class DecodeBackend(Backend):
    """`decode.onnx`, which gives the best tokens and may make several in one call."""

    @abstractmethod
    def multi_step(self, schedule: Schedule, tokens: Tokens, steps: int) -> BestTokens:
        """What the graph makes by itself after the last call of `schedule`: ids and logits [batch, steps] of
        that call alone."""
