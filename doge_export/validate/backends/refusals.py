"""What is left of a run where onnxruntime refuses a call."""

import numpy as np
import numpy.typing as npt

from doge_export.validate.run import BestTokens, Run
from doge_export.validate.schedules import Schedule

__all__ = ["note_refusal", "padded", "refusal"]


def refusal(error: Exception) -> str:
    """The sentence that onnxruntime says of a call that it refuses.

    Raises:
        Exception: `error`, where it is not onnxruntime's.
    """
    bound = isinstance(error, RuntimeError) and str(error).startswith("Error in execution")
    if not (bound or type(error).__module__.startswith("onnxruntime")):
        raise error
    if "allocate memory" in str(error):
        raise MemoryError from error
    return (
        str(error)
        .strip()
        .splitlines()[0]
        .removeprefix("[ONNXRuntimeError] : ")
        .removeprefix("Error in execution: ")
    )


def note_refusal(
    run: Run, logits: list[npt.NDArray[np.float32]], schedule: Schedule, vocab_size: int, error: Exception
) -> None:
    """Let `run` say that the call after those of `logits` was refused, and add NaN for it and the rest.

    Raises:
        Exception: `error`, where it is not onnxruntime's.
    """
    run.stopped = f"call {len(logits) + 1}: {refusal(error)}"
    missing = sum(len(schedule.kept(count)) for count in schedule.steps[len(logits) :])
    logits.append(np.full((len(schedule.padding), missing, vocab_size), np.nan, np.float32))


def padded(
    ids: list[npt.NDArray[np.int64]], logits: list[npt.NDArray[np.float32]], rows: int, count: int
) -> BestTokens:
    """The tokens that there are, [batch] each, and NaN for the rest of `count`."""
    missing = count - len(ids)
    ids = ids + [np.zeros(rows, np.int64)] * missing
    logits = logits + [np.full(rows, np.nan, np.float32)] * missing
    return BestTokens(np.stack(ids, 1), np.stack(logits, 1))
