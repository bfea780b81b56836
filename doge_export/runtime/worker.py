"""A thread that makes the tokens of all jobs on a session."""

__all__ = ["Worker"]

import collections
import threading

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime.generation import check_request, stream
from doge_export.runtime.scheduling.job import Cancelled, Job
from doge_export.runtime.scheduling.row import can_be_pooled
from doge_export.runtime.scheduling.scheduler import Scheduler
from doge_export.runtime.session import Session

_LOOK = 0.2  # seconds after which paused jobs are looked at again, should nobody wake the thread


class Worker:
    """Runs a scheduler in a thread of its own, named "generate", until it is closed."""

    def __init__(self, session: Session, tokenizer: Tokenizer, scheduler: Scheduler) -> None:
        self._session, self._tokenizer, self._scheduler = session, tokenizer, scheduler
        self._new: collections.deque[Job] = collections.deque()
        self._work = threading.Event()  # there is, or was, something to look at
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job, from any thread. Its end says what is wrong with it, before its first token."""
        self._new.append(job)
        self._work.set()

    def wake(self) -> None:
        """Look again at jobs that are cancelled now, or no longer paused. From any thread."""
        self._work.set()

    def close(self) -> None:
        """End the thread, after the last of its jobs has ended."""
        self._closed = True
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        scheduler = self._scheduler
        while True:
            while self._new:
                self._begin(self._new.popleft())
            if scheduler.idle or scheduler.stalled:
                if self._closed and scheduler.idle and not self._new:
                    return
                if not self._work.wait(_LOOK):
                    scheduler.tidy()
                self._work.clear()
                continue
            scheduler.step()

    def _begin(self, job: Job) -> None:
        """Give a job to the scheduler. What cannot be run is said before the first token."""
        session = self._session
        try:
            _check_cancelled(job)
            check_request(session, job.prompts, job.options, self._tokenizer, job.constraints)
            if can_be_pooled(session, job.options, job.constraints):
                self._scheduler.add(job)
            else:
                events = stream(
                    session,
                    job.prompts,
                    job.options,
                    self._tokenizer,
                    on_prompt=lambda _: _check_cancelled(job),
                    constraints=job.constraints,
                )
                self._scheduler.add_unpooled(job, events)
        except Exception as error:
            job.end(error)


def _check_cancelled(job: Job) -> None:
    if job.cancelled:
        raise Cancelled
