"""The scheduler: which rows are in the next call, with how many tokens each."""

__all__ = ["Scheduler"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from doge_export.runtime.calls import StepsPerCall
from doge_export.runtime.drafts import rewindable_length
from doge_export.runtime.events import Event
from doge_export.runtime.sampling import none_left
from doge_export.runtime.scheduling.batch_draws import BatchDraws
from doge_export.runtime.scheduling.job import Cancelled, Job, Unpooled
from doge_export.runtime.scheduling.pieces import PromptBudget
from doge_export.runtime.scheduling.prefixes import PrefixStore
from doge_export.runtime.scheduling.reuse import Reuse
from doge_export.runtime.scheduling.row import Row
from doge_export.runtime.session import Session
from doge_export.runtime.slot_pool import Ids, Logits, SlotPool

_BOUNDARY = 512  # a long prompt's beginning is kept every so many tokens


class Scheduler:
    """Makes the tokens of many jobs in common calls. `step` does one; all of it in one thread.

    Rows join and leave at every call. A row with one token due is in each call; rows that read a prompt share
    what `PromptBudget` leaves to them, so that none waits for a longer one. `max_rows` are in the pool at
    once; others wait, those of the job with the fewest rows in the pool first. Of jobs that are not for the
    pool as many take turns. `cache_bytes`: what the pool may take. A row comes in when there is room for all
    that it may get, so that none has to go before its end; those behind it wait, too.
    """

    def __init__(
        self,
        session: Session,
        max_rows: int = 32,
        prefixes: PrefixStore | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self._session, self._max_rows = session, max_rows
        self.prefixes = PrefixStore(0) if prefixes is None else prefixes
        self._pool: SlotPool | None = None
        self._reuse: Reuse | None = None  # of the pool
        self._cache_bytes = cache_bytes
        self._jobs: list[Job] = []
        self._unpooled: list[Unpooled] = []
        self._waiting: list[Row] = []
        self._rows: list[Row] = []
        self._draws = BatchDraws()
        self._steps: dict[int, StepsPerCall] = {}  # rows -> what a call with them takes
        self._budget = PromptBudget()
        self._rewindable = rewindable_length(session.bundle)
        decode = session.bundle.manifest.decode
        self._capacity = None if decode is None else decode.cache.max_length

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not (self._jobs or self._unpooled)

    @property
    def stalled(self) -> bool:
        """Whether all that could be done is paused."""
        jobs = [*self._jobs, *(each.job for each in self._unpooled)]
        return bool(jobs) and all(job.paused and not job.cancelled for job in jobs)

    @property
    def running(self) -> int:
        """Jobs that have a row in the pool, or are not for it and take their turns."""
        return len({id(row.job) for row in self._rows}) + min(len(self._unpooled), self._max_rows)

    @property
    def rows(self) -> int:
        """Texts that are being made."""
        unpooled = self._unpooled[: self._max_rows]
        return min(len(self._rows) + sum(each.job.left for each in unpooled), self._max_rows)

    @property
    def max_rows(self) -> int:
        """The most rows that are in the pool at once."""
        return self._max_rows

    @property
    def pool(self) -> SlotPool | None:
        """The pool, once there was a job for it."""
        return self._pool

    def add(self, job: Job) -> None:
        """Take a job for the pool (`can_be_pooled`).

        Raises:
            DogeExportError: a prompt and its tokens do not fit in a static cache, in max_length or in the
                pool.
        """
        bundle, draws, rewindable = self._session.bundle, self._session.draws, self._rewindable
        rows = [Row(job, number, bundle, draws, rewindable) for number in range(len(job.prompts))]
        if self._pool is None:
            self._pool = self._session.pool(limit=self._cache_bytes)
            self._reuse = Reuse(self._pool, self.prefixes, self._rows)
        for row in rows:
            row.check_room(self._pool.sizes)
        if not rows:
            job.end(None)
            return
        self._jobs.append(job)
        self._waiting.extend(rows)

    def add_unpooled(self, job: Job, events: Iterator[Event]) -> None:
        """Take a job whose tokens `events` make, one at a time."""
        self._unpooled.append(Unpooled(job, events))

    def step(self) -> None:
        """Do one call for the rows of the pool, and make one token of every other job."""
        self._forget_ended()
        self._admit()
        parts = self._parts()
        if parts:
            self._call(parts)
        elif self._reuse is not None and not self._unpooled:
            self._reuse.wait_for_disk()
        for each in [each for each in self._unpooled if not each.job.paused][: self._max_rows]:
            each.step()
        self._forget_ended()

    def tidy(self) -> bool:
        """Copy a text that ended, for when its slot is needed; returns whether there was one. For when there
        is nothing else to do."""
        return self._reuse is not None and self._reuse.copy_one()

    def close(self) -> None:
        """Let what is kept be written to disk, where it is kept there."""
        if self._reuse is not None and self.prefixes.on_disk:
            self._reuse.copy_all()
        self.prefixes.close()

    def _forget_ended(self) -> None:
        """Let go of what has ended or was cancelled."""
        for each in [each for each in self._unpooled if each.job.over or each.job.cancelled]:
            self._unpooled.remove(each)
            each.close()
            each.job.end(Cancelled())
        gone = [job for job in self._jobs if job.over or job.cancelled]
        if not gone:
            return
        whole = {id(job) for job in gone if not job.over}  # nothing went wrong: what they have read is right
        for job in gone:
            self._jobs.remove(job)
            job.end(Cancelled())
        self._waiting = [row for row in self._waiting if not row.job.over]
        over = [row for row in self._rows if row.job.over]
        for row in over:
            if id(row.job) in whole:
                self._kept.stay(row)
        self._leave(over)

    def _leave(self, rows: Iterable[Row]) -> None:
        pool = self._in_use()
        for row in rows:
            if row.slot is not None:
                pool.close(row.slot)
                row.slot = None
            self._rows.remove(row)

    def _admit(self) -> None:
        """Let waiting rows in, as many as there are places for."""
        while self._waiting and len(self._rows) < self._max_rows:
            inside: dict[int, int] = {}
            for each in self._rows:
                inside[id(each.job)] = inside.get(id(each.job), 0) + 1
            row = min(self._waiting, key=lambda row: inside.get(id(row.job), 0))  # the first of equals
            longest = max(each.room for each in (*self._rows, row))
            if not self._kept.make_room(len(self._rows) + 1, longest):
                break
            self._waiting.remove(row)
            self._rows.append(row)

    def _parts(self) -> dict[Row, int]:
        """How many tokens each row reads in the next call, of those that are in it."""
        wanted: dict[Row, int] = {}
        parts: dict[Row, int] = {}
        beginnings = set()  # that are being read
        for row in self._rows:
            if row.job.paused:
                continue
            if row.slot is None:
                if row.beginning in beginnings:
                    continue  # one of equal prompts is read, and the others go on from there
                if self._kept.on_its_way(row):
                    continue
                self._kept.begin(row)
            if row.due == 1:
                parts[row] = 1
            else:
                wanted[row] = row.due - 1
                beginnings.add(row.beginning)
        for row, count in self._budget.shared(wanted, decoding=bool(parts)).items():
            parts[row] = min(count, _BOUNDARY - row.read % _BOUNDARY)
        return parts

    def _call(self, parts: Mapping[Row, int]) -> None:
        """Let the rows read `parts`, and give out what follows in those that have read all."""
        rows, counts = list(parts), list(parts.values())
        choosing = [row.due == count for row, count in zip(rows, counts, strict=True)]
        if len(rows) == 1 and rows[0].due == 1 and rows[0].made > 0 and (draft := rows[0].draft()):
            self._verify(rows[0], draft)
            return
        draws, stuck = self._draws.of([row for row, chooses in zip(rows, choosing, strict=True) if chooses])
        for row in stuck:
            row.job.end(none_left(row.number, len(row.seen), ruled=True))
        if stuck:
            return  # the next call is without them
        turning = {
            row.slot: row.prompt_length
            for row, count in zip(rows, counts, strict=True)
            if row.turns and row.slot is not None and row.read + count <= row.prompt_length
        }
        steps = 1
        # A first token is not kept back for the sake of those after it.
        if all(choosing) and not turning and all(row.made > 0 for row in rows):
            steps = self._timed(len(rows)).best(self._steps_wanted(rows))
        fed = {
            _slot(row): row.seen[row.read : row.read + count] for row, count in zip(rows, counts, strict=True)
        }
        quiet = [slot for slot, chooses in zip(fed, choosing, strict=True) if not chooses]
        made = self._step(rows, fed, steps, quiet=quiet, rope_lengths=turning, draws=draws)
        if made is None:
            return
        seconds = self._in_use().seconds
        if all(choosing):
            self._timed(len(rows)).took(steps, seconds)
            if len(rows) == 1:
                rows[0].lookup.length.undrafted(steps, seconds)
        self._budget.took(sum(counts) - sum(choosing), sum(choosing), steps, seconds)
        for row, count, chooses in zip(rows, counts, choosing, strict=True):
            row.read += count
            if chooses:
                tokens, logits = made[_slot(row)]
                row.read += steps - 1
                self._take(row, tokens[:, 0], logits[:, 0])
                continue
            row.job.read(count)
            if row.due == 1 or row.read % _BOUNDARY == 0:
                self._kept.keep(row)
        for job in {id(row.job): row.job for row in rows}.values():
            job.deliver()

    def _verify(self, row: Row, draft: list[int]) -> None:
        """Let a row that is alone read its next token and a draft of what comes after it, and give out what
        does come; what was wrong is forgotten."""
        fed = {(slot := _slot(row)): [row.seen[-1], *draft]}
        made = self._step([row], fed, every=[slot], draws=row.draft_draws(draft))
        if made is None:
            return
        tokens, logits = made[slot][0][:, 0], made[slot][1][:, 0]
        right = row.lookup.verified(draft, tokens.tolist(), self._in_use().seconds)
        self._in_use().rewind(slot, len(draft) - right)
        row.read += 1 + right
        self._take(row, tokens[: right + 1], logits[: right + 1])
        row.job.deliver()

    def _step(
        self, rows: Sequence[Row], fed: Mapping[int, Sequence[int]], steps: int = 1, **more: Any
    ) -> dict[int, tuple[Ids, Logits]] | None:
        """Make one call of the pool; None where it failed, which ends the jobs of its rows."""
        try:
            self._kept.save(rows, steps)
            return self._in_use().step(fed, steps, **more)
        except Exception as error:  # whatever it is, the thread goes on for the others
            for row in rows:
                row.job.end(error)
            return None

    def _steps_wanted(self, rows: Sequence[Row]) -> int:
        """Return how many tokens the rows want, most of them at least: what a call makes beyond the end of a
        text is left out, and costs less than calls for the sake of each end."""
        left = sorted(row.left for row in rows)
        wanted = left[0] if self._capacity is not None else left[len(left) // 4]
        return min(wanted, *(row.steps for row in rows))

    def _take(self, row: Row, tokens: Ids, logits: Logits) -> None:
        try:
            row.take(tokens.tolist(), logits.tolist())
        except Exception as error:
            row.job.end(error)
            return
        if row.ended:
            self._kept.keep_ended(row)
            self._leave([row])

    def _timed(self, rows: int) -> StepsPerCall:
        return self._steps.setdefault(rows, StepsPerCall())

    @property
    def _kept(self) -> Reuse:
        assert self._reuse is not None
        return self._reuse

    def _in_use(self) -> SlotPool:
        assert self._pool is not None
        return self._pool


def _slot(row: Row) -> int:
    assert row.slot is not None
    return row.slot
