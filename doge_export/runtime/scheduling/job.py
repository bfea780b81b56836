"""A request for texts, as the scheduler sees it: who is told of new tokens, and of the end."""

__all__ = ["Cancelled", "Job", "Unpooled"]

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime.constraints import Constraint
from doge_export.runtime.events import Event, Statistics
from doge_export.runtime.options import GenerationOptions


class Cancelled(Exception):
    """The job was cancelled; its texts are not whole."""


class Job:
    """Rows that are asked for together, one a prompt, numbered from 0; each draws with the options' seed and
    its number.

    `deliver` gets the new events of its rows after a call, `finish` None after the last one, or what went
    wrong; both in the scheduler's thread, which they must not hold up.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        tokenizer: Tokenizer | None = None,
        deliver: Callable[[list[Event]], None] = lambda events: None,
        finish: Callable[[BaseException | None], None] = lambda error: None,
        constraints: Sequence[Constraint | None] | None = None,
        salt: str = "",
    ) -> None:
        self.prompts, self.options, self.tokenizer = prompts, options, tokenizer
        self.constraints, self.salt = constraints, salt
        self.seed = secrets.randbits(64) if options.seed is None else options.seed & (2**64 - 1)
        self.statistics = Statistics()
        self.until = math.inf  # a text has its last token after that time, of time.perf_counter
        self.cancelled = False  # set from any thread: the rows end after the call under way
        self.paused = False  # likewise: they make no tokens for now
        self.left = len(prompts)  # rows that have not ended
        self._deliver, self._finish = deliver, finish
        #: Told how many tokens of a prompt were read, after each piece of it but the last.
        self.read: Callable[[int], None] = lambda tokens: None
        self._events: list[Event] = []
        self._began = time.perf_counter()
        self._first = 0.0  # when the first token was made
        self.over = False

    @property
    def seconds(self) -> float:
        """How long ago it was asked for."""
        return time.perf_counter() - self._began

    def add(self, event: Event) -> None:
        """Take an event of a row, to be delivered with the others of the call."""
        statistics = self.statistics
        if self._first == 0.0:
            self._first = time.perf_counter()
            statistics.prefill_tokens += sum(map(len, self.prompts))
            statistics.prefill_seconds += self._first - self._began
        else:
            statistics.decode_tokens += 1
        self._events.append(event)
        if event.finish_reason is not None:
            self.left -= 1

    def deliver(self) -> None:
        """Deliver what was added."""
        if self._events:
            self.statistics.decode_seconds = time.perf_counter() - self._first
            events, self._events = self._events, []
            try:
                self._deliver(events)
            except Exception as error:  # the reader's fault, which is not that of other jobs
                self.end(error)
        if self.left == 0:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """Say that there is nothing more, once."""
        if not self.over:
            self.over = True
            self._finish(error)


class Unpooled:
    """A job whose rows cannot be in a pool, and what makes their tokens: one at a time, in turn with
    others."""

    def __init__(self, job: Job, events: Iterator[Event]) -> None:
        self.job, self._events = job, events

    def step(self) -> None:
        """Make one token."""
        try:
            self.job.add(next(self._events))
        except StopIteration:
            self.job.end(None)
        except Exception as error:
            self.job.end(error)
        self.job.deliver()

    def close(self) -> None:
        """Let go of its cache."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
