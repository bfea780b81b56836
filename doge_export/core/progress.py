"""How long work reports its progress."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["AnyProgress", "Progress", "reporting", "silent", "stages"]


@runtime_checkable
class Progress(Protocol):
    """What long work calls while it goes on."""

    def __call__(self, done: int = 1, stage: str = "") -> None:
        """`done`: how much more was done since the last call, in the unit that the function names (bytes,
        tokens, measurements). `stage`: what is being worked on; where it is "", what it was before."""

    def planned(self, total: int) -> None:
        """`total`: how much there will be in all, in that unit, where it was not known before."""


class _Silent:
    def __call__(self, done: int = 1, stage: str = "") -> None:
        pass

    def planned(self, total: int) -> None:
        pass


#: Tells nobody.
silent: Progress = _Silent()


class _Stages:
    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def __call__(self, done: int = 1, stage: str = "") -> None:
        self._progress(0, f"{self._prefix}{stage}" if stage else "")

    def planned(self, total: int) -> None:
        pass


def stages(progress: Progress, prefix: str = "") -> Progress:
    """For a part of some work whose unit is another: only its stages reach `progress`, behind `prefix`."""
    return _Stages(progress, prefix)


#: What the package's public functions take: a Progress, or a plain function of `done` and `stage`.
AnyProgress = Progress | Callable[[int, str], None]


class _Function:
    def __init__(self, function: Callable[[int, str], None]) -> None:
        self._function = function

    def __call__(self, done: int = 1, stage: str = "") -> None:
        self._function(done, stage)

    def planned(self, total: int) -> None:
        pass


def reporting(progress: AnyProgress) -> Progress:
    """`progress` itself, or where it is a plain function, a Progress that calls it."""
    return progress if isinstance(progress, Progress) else _Function(progress)
