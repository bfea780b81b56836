"""Mixed requests through the scheduler, held to what each of them gives alone."""

__all__ = ["RandomRequests", "SelfCheck", "self_check"]

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from doge_export.core.progress import Progress, silent
from doge_export.runtime.events import Event
from doge_export.runtime.generation import stream_alone
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.scheduling import Cancelled, Job, PrefixStore, Scheduler, can_be_pooled
from doge_export.runtime.session import Session

_LONGEST = 160  # tokens of a prompt and what follows
_PREFIX_BYTES = 32 << 20
_DEFAULTS = GenerationOptions()
_GREEDY = GenerationOptions(temperature=0)


@dataclass(frozen=True)
class SelfCheck:
    """What was compared. `reused`: tokens of prompts that were not read, since another text began likewise.
    `differing`: a sentence for each text that is not the one given alone."""

    requests: int
    texts: int
    tokens: int
    cancelled: int
    reused: int
    seconds: float
    differing: tuple[str, ...]


def self_check(
    session: Session,
    requests: int = 200,
    seed: int = 0,
    parallel: int = 32,
    progress: Progress = silent,
) -> SelfCheck:
    """Run so many random requests, `parallel` texts at a time, and each of their texts alone again; compare
    every token and every piece of what is known of it.

    They join while others run, some are cancelled or pause; greedy ones and such as are drawn, with penalties
    and biases, copies of a prompt and prompts that begin alike. `progress` gets requests, once when one has
    ended and again when it was compared. A session whose texts share no calls has nothing to compare:
    `requests` is 0 then.
    """
    started = time.perf_counter()
    if not can_be_pooled(session, _GREEDY):
        return SelfCheck(0, 0, 0, 0, 0, 0.0, ())
    rng = random.Random(seed)
    prefixes = PrefixStore(_PREFIX_BYTES)
    scheduler = Scheduler(session, parallel, prefixes)
    draw = RandomRequests(rng, session)
    every = [_Request(*draw.one()) for _ in range(requests)]
    progress.planned(2 * requests)
    _run(scheduler, every, rng, progress)
    differing: list[str] = []
    for request in every:
        differing += request.compared(session)
        progress(1)
    return SelfCheck(
        requests=len(every),
        texts=sum(len(each.prompts) for each in every),
        tokens=sum(len(each.events) for each in every),
        cancelled=sum(each.was_cancelled for each in every),
        reused=prefixes.use.tokens,
        seconds=time.perf_counter() - started,
        differing=tuple(differing),
    )


class _Request:
    """A request and what came of it."""

    def __init__(self, prompts: Sequence[Sequence[int]], options: GenerationOptions, salt: str) -> None:
        self.prompts, self.options = prompts, options
        self.events: list[Event] = []
        self.ends: list[BaseException | None] = []
        self.job = Job(prompts, options, None, self.events.extend, self.ends.append, salt=salt)

    @property
    def was_cancelled(self) -> bool:
        """Whether it has no whole texts, since it was cancelled before."""
        return bool(self.ends) and isinstance(self.ends[0], Cancelled)

    def compared(self, session: Session) -> list[str]:
        """Return what is wrong with it, a sentence a text."""
        if not self.was_cancelled and self.ends != [None]:
            return [f"A request with {self._described()} failed: {self.ends[0]!r}."]
        made, alone = _by_row(self.events), _by_row(list(stream_alone(session, self.prompts, self.options)))
        wrong = []
        for row in range(len(self.prompts)):
            got, expected = made.get(row, []), alone[row]
            if self.was_cancelled:
                expected = expected[: len(got)]
            if got != expected:
                place = next(
                    (at for at, (one, other) in enumerate(zip(got, expected, strict=False)) if one != other),
                    min(len(got), len(expected)),
                )
                wrong.append(
                    f"Text {row} of a request with {self._described()} differs at token {place}: "
                    f"{_token(got, place)} for {_token(expected, place)}."
                )
        return wrong

    def _described(self) -> str:
        lengths = " and ".join(str(len(prompt)) for prompt in self.prompts)
        changed = [
            f"{each.name}={value!r}"
            for each in fields(GenerationOptions)
            if (value := getattr(self.options, each.name)) != getattr(_DEFAULTS, each.name)
        ]
        return f"prompts of {lengths} tokens and {', '.join(changed)}"


class RandomRequests:
    """Draws requests that a session can run."""

    def __init__(self, rng: random.Random, session: Session) -> None:
        self._rng, self._session, self._vocab = rng, session, session.bundle.config.vocab_size
        decode = session.bundle.manifest.decode
        most = None if decode is None else decode.cache.max_length
        self._longest = _LONGEST if most is None else min(_LONGEST, most)
        self._shared = self._ids(self._longest // 2)

    def one(self) -> tuple[list[list[int]], GenerationOptions, str]:
        """Return prompts, options and salt."""
        rng, room = self._rng, self._longest
        beginning = self._shared[: rng.choice([0, 0, room // 12, room // 4, room // 2])]
        texts = rng.choice([1, 1, 2, 3])
        prompts = [beginning + self._ids(rng.choice([1, 2, room // 10, room // 4])) for _ in range(texts)]
        if rng.random() < 0.3:
            prompts = prompts[:1] * 3
        most = max(1, room - max(map(len, prompts)))
        biased = rng.sample(range(self._vocab), min(3, self._vocab))
        options = GenerationOptions(
            max_new_tokens=min(most, rng.choice([1, 4, 20, 45])),
            temperature=rng.choice([0, 0, 0.7, 1.5]),
            top_k=rng.choice([0, 30]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.4]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
            presence_penalty=rng.choice([0.0, 0.0, 0.0, -0.3]),
            min_new_tokens=rng.choice([None, None, 5]),
            sequence_bias=rng.choice([(), (((biased[0],), 4.0),)]),
            suppress_tokens=rng.choice([(), tuple(biased[1:])]),
            eos_token_ids=tuple(rng.sample(range(self._vocab), min(self._vocab // 40, rng.choice([0, 6])))),
            seed=rng.randrange(1000),
        )
        if not can_be_pooled(self._session, options):  # penalties of two kinds at once
            options = replace(options, repetition_penalty=1.0, sequence_bias=())
        if not can_be_pooled(self._session, options):  # a bundle whose kernels do not draw
            options = replace(_GREEDY, max_new_tokens=options.max_new_tokens)
        return prompts, options, rng.choice(["", "", "a"])

    def _ids(self, count: int) -> list[int]:
        return [self._rng.randrange(self._vocab) for _ in range(count)]


def _run(scheduler: Scheduler, requests: Sequence[_Request], rng: random.Random, progress: Progress) -> None:
    """Let the requests come while others run; some are cancelled, some pause for a call."""
    waiting, ended = list(reversed(requests)), 0
    while waiting or not scheduler.idle:
        while waiting and rng.random() < 0.4:
            scheduler.add(waiting.pop().job)
        going = [each for each in requests if each.events and not each.ends]
        if going and rng.random() < 0.05:
            rng.choice(going).job.cancelled = True
        for each in going:
            each.job.paused = rng.random() < 0.2
        scheduler.step()
        before, ended = ended, sum(bool(each.ends) for each in requests)
        if ended > before:
            progress(ended - before)


def _by_row(events: Sequence[Event]) -> Mapping[int, list[Event]]:
    rows: dict[int, list[Event]] = {}
    for event in events:
        rows.setdefault(event.row, []).append(event)
    return rows


def _token(events: Sequence[Event], place: int) -> str:
    if place >= len(events):
        return "none"
    event = events[place]
    return str(event.token) if event.finish_reason is None else f"{event.token} ({event.finish_reason})"
