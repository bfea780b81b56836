"""An engine as it is run, with the same calls as a graph."""

__all__ = ["Compiled"]

from doge_export.runtime import Session
from doge_export.validate.kernels import step_through
from doge_export.validate.reference import Run
from doge_export.validate.schedules import Schedule, Tokens


class Compiled:
    """`session` is TensorRT's. What an engine chose does not show."""

    def __init__(self, session: Session) -> None:
        self.session, self.bundle = session, session.bundle

    def run(self, schedule: Schedule, tokens: Tokens) -> Run:
        """The schedule, from an empty cache."""
        return step_through(self.session, schedule, tokens)
