"""An engine as it is run, with the same calls as a graph."""

__all__ = ["EngineBackend"]

from collections.abc import Container

from doge_export.runtime import Session
from doge_export.validate.backends.base import Backend, BackendName, Shows
from doge_export.validate.backends.session_run import run_session
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens


class EngineBackend(Backend):
    """`session` is TensorRT's. What an engine chose does not show."""

    name = BackendName.ENGINE

    def __init__(self, session: Session) -> None:
        self.session, self.bundle = session, session.bundle

    @property
    def shows(self) -> Shows:
        """Logits alone."""
        return Shows.LOGITS

    def run(self, schedule: Schedule, tokens: Tokens, *, trace: Container[str] | None = None) -> Run:
        """See Backend."""
        return run_session(self.session, schedule, tokens)
