"""What every route is given: the model behind it, and the means that the routes share."""

__all__ = ["Served", "Service", "Task", "Watched", "snapshot"]

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event
from doge_export.serve.bodies import Bodies
from doge_export.serve.limits import Limits
from doge_export.serve.meters import Meters
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.responses_api.store import ResponseStore


class Task(Protocol):
    """One request's generation."""

    def events(self) -> AsyncGenerator[list[Event]]: ...

    def cancel(self) -> None: ...


class Service(Protocol):
    """What generates."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def start(self, request: TextRequest) -> Task: ...


@runtime_checkable
class Watched(Protocol):
    """A service that says what it does: `running` and `waiting` requests, and its `slots`, one mapping each,
    with `id` and `is_processing` at least."""

    def snapshot(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Served:
    """One bundle, served. `created`: when, in seconds since 1970. `responses`: those of /v1/responses."""

    service: Service
    reader: RequestReader
    limits: Limits
    bodies: Bodies
    meters: Meters
    created: int
    responses: ResponseStore = field(default_factory=ResponseStore)


def snapshot(service: Service) -> Mapping[str, Any] | None:
    """What the service does now; None where it does not say."""
    return service.snapshot() if isinstance(service, Watched) else None
