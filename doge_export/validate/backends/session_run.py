"""A schedule made by the runtime's own calls: what the kernels and an engine have in common."""

import numpy as np
import numpy.typing as npt

from doge_export.runtime import Session
from doge_export.validate.backends.refusals import note_refusal
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["run_session"]


def run_session(session: Session, schedule: Schedule, tokens: Tokens) -> Run:
    """See Backend.run."""
    cache = session.new_cache(len(schedule.padding))
    logits: list[npt.NDArray[np.float32]] = []
    run = Run()
    for part, count in zip(schedule.parts, schedule.steps, strict=True):
        covered = part if cache.streams else slice(part.stop)
        try:
            call_logits, cache = session.step(
                np.ascontiguousarray(tokens.input_ids[:, part]),
                np.ascontiguousarray(tokens.attention_mask[:, covered]),
                np.ascontiguousarray(tokens.position_ids[:, part]),
                cache,
            )
        except Exception as error:
            note_refusal(run, logits, schedule, session.bundle.config.vocab_size, error)
            break
        logits.append(call_logits[:, schedule.kept(count)])
    run.logits = np.concatenate(logits, 1)
    return run
