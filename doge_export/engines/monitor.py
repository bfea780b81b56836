"""A progress monitor for TensorRT that calls our own callback."""

__all__ = ["new_monitor"]

from typing import Any

from doge_export.core.progress import Progress


def new_monitor(trt: Any, progress: Progress) -> tuple[Any, list[BaseException]]:
    """A monitor that TensorRT takes, and what was raised while it was told something.

    An exception must not pass through TensorRT: it would end the process. It is kept, and the build stops.
    """
    raised: list[BaseException] = []

    def tell(steps: int, stage: str) -> None:
        try:
            progress(steps, stage)
        except BaseException as error:
            raised.append(error)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(0, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(1, phase_name)
            return not raised

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor(), raised
