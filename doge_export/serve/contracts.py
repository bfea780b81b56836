"""What routes and the registry need of whatever generates."""

__all__ = ["Service", "Task", "Watched", "snapshot"]

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, runtime_checkable

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event
from doge_export.serve.requests import TextRequest


class Task(Protocol):
    """One request's generation."""

    def events(self) -> AsyncGenerator[list[Event]]: ...

    def cancel(self) -> None: ...


class Service(Protocol):
    """What generates, until it is closed."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def start(self, request: TextRequest) -> Task: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Watched(Protocol):
    """A service that says what it does: `running` and `waiting` requests, and its `slots`, one mapping each,
    with `id` and `is_processing` at least."""

    def snapshot(self) -> Mapping[str, Any]: ...


def snapshot(service: Service) -> Mapping[str, Any] | None:
    """What the service does now; None where it does not say."""
    return service.snapshot() if isinstance(service, Watched) else None
