"""Generating text: prefill, then one token a step, for one prompt or a batch of them."""

__all__ = [
    "Completion",
    "Event",
    "Generation",
    "Statistics",
    "check_request",
    "generate",
    "stream",
    "stream_alone",
]

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime.constraints import Constraint
from doge_export.runtime.events import Event, Statistics, event_of, rules_end
from doge_export.runtime.limits import check_ids, check_prompts, most_tokens, token_limit
from doge_export.runtime.neighbours import rows_are_independent
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.positions import say_long
from doge_export.runtime.scheduling import Job, PrefixStore, Scheduler, can_be_pooled
from doge_export.runtime.scored_tokens import ScoredTokens
from doge_export.runtime.session import Session
from doge_export.runtime.stop_strings import RowText
from doge_export.runtime.text_changes import change_with_text
from doge_export.runtime.token_strategy import TokenStrategy, choose_strategy

_MAX_ROWS = 32  # in the pool at once; others wait for a place
_PREFIX_BYTES = 64 << 20


@dataclass
class Completion:
    """The continuation of one prompt.

    `ids` hold all new tokens, the end-of-text token or the one that completed a stop string included;
    `text` ends before them, and is empty where there was no tokenizer.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"


@dataclass(frozen=True)
class Generation:
    """The completions, one a prompt in their order, and how long they took."""

    completions: list[Completion]
    statistics: Statistics


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    on_text: Callable[[int, str], None] | None = None,
    on_prompt: Callable[[int], None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    prefixes: PrefixStore | None = None,
) -> Generation:
    """Continue every prompt; `on_text` gets the row and each new piece of its text as it comes, `on_prompt`
    how many tokens of a long prompt were read, as they are. `constraints`, `prefixes`: see `stream`.

    Raises:
        DogeExportError: see `stream`.
    """
    statistics = Statistics()
    completions = [Completion() for _ in prompts]
    events = stream(session, prompts, options, tokenizer, statistics, on_prompt, constraints, prefixes)
    for event in events:
        completion = completions[event.row]
        completion.ids.append(event.token)
        completion.text += event.text
        if event.finish_reason is not None:
            completion.finish_reason = event.finish_reason
        if on_text is not None and event.text:
            on_text(event.row, event.text)
    return Generation(completions, statistics)


def stream(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    statistics: Statistics | None = None,
    on_prompt: Callable[[int], None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    prefixes: PrefixStore | None = None,
) -> Generator[Event]:
    """Continue every prompt, token by token; each is continued as it is alone, its draws apart, and the rows
    grow side by side. Text and stop strings need the `tokenizer`. `constraints` are the rules of each new
    text, one object a row, at its beginning; they go on with it. `prefixes` keeps what was read for later
    calls with texts that begin likewise, such as the next turn of a conversation.

    Raises:
        DogeExportError: a prompt is empty or has an id outside the vocabulary, prompt and new tokens do
            not fit in a static cache or in max_length, there are stop strings and no tokenizer, an id of
            the options is no token, no token is left to choose, or the model's logits are no numbers; or
            there are not as many constraints as prompts.
    """
    statistics = Statistics() if statistics is None else statistics
    check_request(session, prompts, options, tokenizer, constraints)
    if not prompts:
        return
    until = _until(options)
    pooled = len(prompts) > 1 or prefixes is not None or change_with_text(options)
    if pooled and can_be_pooled(session, options, constraints):
        session.load(tokens=True)  # its seconds are not prefill's
        kept = PrefixStore(_PREFIX_BYTES) if prefixes is None else prefixes
        scheduler = Scheduler(session, _MAX_ROWS, kept)
        events: list[Event] = []
        errors: list[BaseException | None] = []
        job = Job(prompts, options, tokenizer, events.extend, errors.append, constraints)
        job.statistics, job.until, job.read = statistics, until, on_prompt or job.read
        yield from _pooled(scheduler, job, events, errors)
        while prefixes is not None and scheduler.tidy():
            pass  # whole texts are copied, for the next turn
        return
    calls = _calls(session, prompts, options, tokenizer, on_prompt, constraints or ())
    yield from _in_turns(calls, statistics, until)


def stream_alone(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    constraints: Sequence[Constraint | None] | None = None,
) -> Iterator[Event]:
    """Give the events of `stream` by the slow and obvious way: each row in calls of its own, in turns. Other
    ways are held to it. Raises as `stream`."""
    check_request(session, prompts, options, tokenizer, constraints)
    rules = constraints or ()
    rows = [
        _Rows(session, prompts[row : row + 1], row, options, tokenizer, None, rules[row : row + 1])
        for row in range(len(prompts))
    ]
    yield from _in_turns(rows, Statistics(), _until(options))


def check_request(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
    constraints: Sequence[Constraint | None] | None,
) -> None:
    """Refuse what no bundle can run. Raises as `stream`, which also refuses what has no room."""
    check_prompts(session.bundle, prompts)
    check_ids(session.bundle, options)
    say_long(session.bundle, max(map(len, prompts), default=0))
    if options.stop and tokenizer is None:
        raise DogeExportError("A stop string needs a tokenizer, and the bundle has none.")
    if constraints is not None and len(constraints) != len(prompts):
        raise DogeExportError(f"There are {len(constraints)} constraints for {len(prompts)} prompts.")


def _until(options: GenerationOptions) -> float:
    """When the texts that begin now have to end, of time.perf_counter."""
    return time.perf_counter() + (math.inf if options.max_time is None else options.max_time)


def _in_turns(calls: list["_Rows"], statistics: Statistics, until: float) -> Iterator[Event]:
    """Make a token of each in turn, so that the rows grow side by side however many calls they take."""
    while calls:
        for rows in tuple(calls):
            yield from rows.step(statistics, until)
            if rows.ended:
                calls.remove(rows)


def _pooled(
    scheduler: Scheduler, job: Job, events: list[Event], errors: list[BaseException | None]
) -> Iterator[Event]:
    """Make the tokens of a job whose rows join and leave a pool one by one, and give out its `events`; of
    `errors` the first."""
    scheduler.add(job)
    while not scheduler.idle:
        scheduler.step()
        yield from events
        events.clear()
    if errors and errors[0] is not None:
        raise errors[0]


def _calls(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
    read: Callable[[int], None] | None,
    rules: Sequence[Constraint | None],
) -> list["_Rows"]:
    """Put all rows in common calls where each gives what it gives alone, else each in calls of its own. What
    cannot be run is refused here, before the first token of any row."""

    def rows(first: int, end: int) -> _Rows:
        return _Rows(session, prompts[first:end], first, options, tokenizer, read, rules[first:end])

    lengths = list(map(len, prompts))
    end = max(length + most_tokens(options, length) for length in lengths)
    if rows_are_independent(session.bundle, lengths, end):
        together = rows(0, len(prompts))
        if together.as_long_as_alone:
            return [together]
    return [rows(row, row + 1) for row in range(len(prompts))]


class _Rows:
    """Rows that share their calls and their cache, from row number `first` on, and how far they are."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        first: int,
        options: GenerationOptions,
        tokenizer: Tokenizer | None,
        read: Callable[[int], None] | None,
        rules: Sequence[Constraint | None],
    ) -> None:
        count = len(prompts)
        self._options, self._first = options, first
        self._rules = dict(enumerate(rules))
        self._input_ids, self._real = _left_padded(prompts, options.pad_token_id)
        self._position_ids = np.clip(np.cumsum(self._real, axis=1) - 1, 0, None)
        # Loads the graph: its seconds are not prefill's.
        self._strategy = _strategy(session, options, count, read, first, rules)
        capacity, lengths = self._strategy.capacity, list(map(len, prompts))
        self._limits = [token_limit(capacity, max(lengths), options, length) for length in lengths]
        alone = [token_limit(capacity, length, options, length) for length in lengths]
        self.as_long_as_alone = self._limits == alone
        self._texts = [RowText(tokenizer, options.stop, prompt) for prompt in prompts]
        self._seen = {row: list(prompt) for row, prompt in enumerate(prompts)}
        self._one = np.ones((count, 1), np.int64)
        self._made = 0

    @property
    def ended(self) -> bool:
        """Whether no row goes on."""
        return not self._seen

    def step(self, statistics: Statistics, until: float) -> Iterator[Event]:
        """Make one token of each row that goes on, the last one after the time `until`."""
        seen, left = self._seen, max(self._limits[row] for row in self._seen) - self._made
        started = time.perf_counter()
        tokens = self._strategy.choose(self._input_ids, self._real, self._position_ids, seen, left)
        seconds = time.perf_counter() - started
        if self._made == 0:
            statistics.prefill_tokens += sum(map(len, seen.values()))
            statistics.prefill_seconds += seconds
        else:
            statistics.decode_tokens += len(seen)
            statistics.decode_seconds += seconds
        self._made += 1
        late = time.perf_counter() > until
        # A row that has ended goes on with padding, as in transformers: it does not disturb the others.
        self._input_ids = np.full_like(self._one, self._options.pad_token_id)
        self._real, self._position_ids = self._one, self._position_ids[:, -1:] + 1
        for row in sorted(seen):
            self._input_ids[row, 0] = token = tokens[row]
            seen[row].append(token)
            last = late or self._made == self._limits[row]
            whole = rules_end(self._rules.get(row), token)
            event = event_of(self._first + row, token, self._texts[row], self._options, last, whole)
            event = self._scored(row, event)
            if event.finish_reason is not None:
                del seen[row]
            yield event

    def _scored(self, row: int, event: Event) -> Event:
        """Return the event with the log-probabilities that were asked for."""
        if not isinstance(self._strategy, ScoredTokens):
            return event
        prompt = self._strategy.prompts.get(row) if self._made == 1 else None
        return replace(event, logprobs=self._strategy.made[row], prompt_logprobs=prompt)


def _strategy(
    session: Session,
    options: GenerationOptions,
    batch: int,
    read: Callable[[int], None] | None,
    first: int,
    rules: Sequence[Constraint | None],
) -> TokenStrategy:
    if options.scored:
        return ScoredTokens(session, options, batch, read or (lambda _: None), first, rules)
    return choose_strategy(session, options, batch, read, first, rules)


def _left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and attention mask [batch, longest prompt]."""
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
