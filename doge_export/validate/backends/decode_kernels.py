"""`decode.onnx` as it is run: by the runtime's own session, on the native kernels."""

from collections.abc import Container

import numpy as np
import numpy.typing as npt

from doge_export.validate.backends.base import BackendName, DecodeBackend, Shows
from doge_export.validate.backends.kernel_session import KernelSession
from doge_export.validate.backends.refusals import padded, refusal
from doge_export.validate.run import BestTokens, Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["DecodeKernels"]


class DecodeKernels(DecodeBackend):
    """The graph that gives the best tokens, with a cache that its kernels write in place."""

    name = BackendName.DECODE_KERNELS
    suffix = ", kernels"

    def __init__(self, session: KernelSession) -> None:
        self._session = session

    @property
    def shows(self) -> Shows:
        """The best tokens alone."""
        return Shows.BEST

    def run(self, schedule: Schedule, tokens: Tokens, *, trace: Container[str] | None = None) -> Run:
        """See Backend."""
        rows = len(schedule.padding)
        decoder = self._session.on(tokens=True).decoder(rows)
        ids: list[npt.NDArray[np.int64]] = []
        logits: list[npt.NDArray[np.float32]] = []
        run = Run()
        for part in schedule.parts:
            try:
                best, values = decoder.step(
                    tokens.input_ids[:, part], tokens.position_ids[:, part], tokens.attention_mask[:, part]
                )
            except Exception as error:
                run.stopped = f"call {len(ids) + 1}: {refusal(error)}"
                break
            ids.append(best[:, 0, 0].copy())
            logits.append(values[:, 0, 0].copy())
        run.best = padded(ids, logits, rows, len(schedule.steps))
        return run

    def multi_step(self, schedule: Schedule, tokens: Tokens, steps: int) -> BestTokens:
        """See DecodeBackend; of a schedule of one call."""
        decoder = self._session.on(tokens=True).decoder(len(schedule.padding))
        try:
            best, values = decoder.step(tokens.input_ids, tokens.position_ids, tokens.attention_mask, steps)
        except Exception as error:
            refusal(error)
            return padded([], [], len(schedule.padding), steps)
        return BestTokens(best[..., 0].copy(), values[..., 0].copy())
