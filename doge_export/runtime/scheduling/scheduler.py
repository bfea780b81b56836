"""The scheduler: which rows are in the next call, with how many tokens each."""

__all__ = ["Scheduler"]

import concurrent.futures
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from doge_export.core.errors import DogeExportError
from doge_export.runtime.calls import StepsPerCall
from doge_export.runtime.events import Event
from doge_export.runtime.scheduling.batch_draws import BatchDraws
from doge_export.runtime.scheduling.job import Cancelled, Job, Unpooled
from doge_export.runtime.scheduling.pieces import PromptBudget
from doge_export.runtime.scheduling.prefixes import PrefixStore
from doge_export.runtime.scheduling.residents import Resident, Residents
from doge_export.runtime.scheduling.row import Row
from doge_export.runtime.session import Session
from doge_export.runtime.slot_pool import Ids, Logits, SlotPool

_WORTH = 32  # new tokens from which on a prefix is kept
_PART = 16  # and what part of all of its keys they are at least
_BOUNDARY = 512  # a long prompt's beginning is kept every so many tokens
_FEW = 4  # rows of a call that ends of texts are kept of where that takes a look at all weights
_LOOK = 0.05  # seconds after which, with nothing to do but wait for the disk, others are looked for


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
        self._residents: Residents | None = None  # where anything is kept
        self._cache_bytes = cache_bytes
        self._jobs: list[Job] = []
        self._unpooled: list[Unpooled] = []
        self._waiting: list[Row] = []
        self._rows: list[Row] = []
        self._draws = BatchDraws(session.bundle.config.vocab_size)
        self._steps: dict[int, StepsPerCall] = {}  # rows -> what a call with them takes
        self._budget = PromptBudget()
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
        bundle, draws = self._session.bundle, self._session.draws
        rows = [Row(job, number, bundle, draws) for number in range(len(job.prompts))]
        if self._pool is None:
            self._pool = self._session.pool(limit=self._cache_bytes)
            if self.prefixes.on:
                self._residents = Residents(self._pool, self.prefixes, _WORTH)
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
        elif not self._unpooled:
            self._wait_for_disk()
        for each in [each for each in self._unpooled if not each.job.paused][: self._max_rows]:
            each.step()
        self._forget_ended()

    def tidy(self) -> bool:
        """Copy a text that ended, for when its slot is needed; returns whether there was one. For when there
        is nothing else to do."""
        return self._residents is not None and self._residents.copy_one()

    def close(self) -> None:
        """Let what is kept be written to disk, where it is kept there."""
        if self._residents is not None and self.prefixes.on_disk:
            self._residents.copy_all()
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
                self._stay(row)
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
            make_room = self._in_use().has_room if self._residents is None else self._residents.make_room
            if not make_room(len(self._rows) + 1, longest):
                break
            self._waiting.remove(row)
            self._rows.append(row)

    def _begin(self, row: Row) -> None:
        """Give a row a slot, with what is known of the beginning of its prompt."""
        pool, resident = self._in_use(), self._resident(row)
        if resident is not None and self._awaited(row):
            self._residents_in_use().copy(resident)  # others go on from it, too
        beyond = 0 if resident is None else len(resident.tokens)
        known = self.prefixes.longest(row.seen[:-1], row.salt, beyond - 1 if self._awaited(row) else beyond)
        row.begun = time.perf_counter()
        if known is not None and not pool.fits(known):  # of a folder that somebody else writes to
            known = None
        if known is None and resident is not None:
            self._residents_in_use().take(resident)
            self.prefixes.use.found(beyond)
            row.slot, row.read, row.known_length = resident.slot, beyond, resident.kept
            return
        if self._residents is not None:
            self._residents.make_place()
        row.slot = pool.open() if known is None else pool.restore(known)
        row.read = row.known_length = 0 if known is None else known.length

    def _resident(self, row: Row) -> Resident | None:
        """Return the ended text that has read the most of a row's prompt and is still in its slot."""
        return None if self._residents is None else self._residents.longest(row.seen[:-1], row.salt)

    def _awaited(self, row: Row) -> bool:
        """Whether others wait for what the row reads of their prompts, too."""
        return any(
            each is not row and each.slot is None and each.beginning == row.beginning for each in self._rows
        )

    def _on_its_way(self, row: Row) -> bool:
        """Whether what is known of the beginning of a row's prompt is being read from disk."""
        if row.loading is None and self.prefixes.on_disk:
            resident = self._resident(row)
            beyond = 0 if resident is None else len(resident.tokens)
            row.loading = self.prefixes.fetch(row.seen[:-1], row.salt, beyond)
        if row.loading is None:
            return False
        if not row.loading.result.done():
            return True
        self.prefixes.fetched(row.loading)
        return False

    def _wait_for_disk(self) -> None:
        """Wait for what is read from disk: nobody makes tokens meanwhile."""
        reads = [row.loading.result for row in self._rows if row.slot is None and row.loading is not None]
        if reads:
            concurrent.futures.wait(reads, _LOOK, concurrent.futures.FIRST_COMPLETED)

    def _parts(self) -> dict[int, int]:
        """Row (its place in the list) -> how many tokens it reads in the next call."""
        wanted: dict[int, int] = {}
        parts: dict[int, int] = {}
        beginnings = set()  # that are being read
        for at, row in enumerate(self._rows):
            if row.job.paused:
                continue
            if row.slot is None:
                if row.beginning in beginnings:
                    continue  # one of equal prompts is read, and the others go on from there
                if self._on_its_way(row):
                    continue
                self._begin(row)
            if row.due == 1:
                parts[at] = 1
            else:
                wanted[at] = row.due - 1
                beginnings.add(row.beginning)
        for at, count in self._budget.shared(wanted, decoding=bool(parts)).items():
            parts[at] = min(count, _BOUNDARY - self._rows[at].read % _BOUNDARY)
        return parts

    def _call(self, parts: Mapping[int, int]) -> None:
        """Let the rows read `parts`, and give out what follows in those that have read all."""
        pool, rows = self._in_use(), [self._rows[at] for at in parts]
        counts = list(parts.values())
        fed = {}
        for row, count in zip(rows, counts, strict=True):
            assert row.slot is not None
            fed[row.slot] = row.seen[row.read : row.read + count]
        choosing = [row.due == count for row, count in zip(rows, counts, strict=True)]
        turning = {
            row.slot: row.prompt_length
            for row, count in zip(rows, counts, strict=True)
            if row.turns and row.slot is not None and row.read + count <= row.prompt_length
        }
        steps = 1
        # A first token is not kept back for the sake of those after it.
        if all(choosing) and not turning and all(row.made > 0 and row.constraint is None for row in rows):
            steps = self._timed(len(rows)).best(self._steps_wanted(rows))
        try:
            chosen = [row for row, chooses in zip(rows, choosing, strict=True) if chooses]
            quiet = [slot for slot, chooses in zip(fed, choosing, strict=True) if not chooses]
            draws = self._draws.of(chosen)
            self._save(rows, steps)
            made = pool.step(fed, steps, quiet=quiet, rope_lengths=turning, draws=draws)
        except Exception as error:  # whatever it is, the thread goes on for the others
            for row in rows:
                row.job.end(error)
            return
        if all(choosing):
            self._timed(len(rows)).took(steps, pool.seconds)
        self._budget.took(sum(counts) - sum(choosing), sum(choosing), steps, pool.seconds)
        for row, count, chooses in zip(rows, counts, choosing, strict=True):
            assert row.slot is not None
            row.read += count
            if chooses:
                tokens, logits = made[row.slot]
                row.read += steps - 1
                self._take(row, tokens[:, 0], logits[:, 0])
            elif row.due == 1 or row.read % _BOUNDARY == 0:
                self._keep(row)
        for job in {id(row.job): row.job for row in rows}.values():
            job.deliver()

    def _steps_wanted(self, rows: Sequence[Row]) -> int:
        """Return how many tokens the rows want, most of them at least: what a call makes beyond the end of a
        text is left out, and costs less than calls for the sake of each end."""
        left = sorted(row.left for row in rows)
        return left[0] if self._capacity is not None else left[len(left) // 4]

    def _take(self, row: Row, tokens: Ids, logits: Logits) -> None:
        try:
            row.take(tokens.tolist(), logits.tolist())
        except Exception as error:
            row.job.end(error)
            return
        if row.ended:
            self._keep_ended(row)
            self._leave([row])

    def _keep(self, row: Row) -> None:
        """Keep what a row has read for texts that begin likewise."""
        tokens, pool = row.seen[: row.read], self._in_use()
        # A copy of a long text takes longer than to read a few tokens again.
        worth = max(_WORTH, pool.sizes.used(row.read) // _PART)
        new = row.read - row.known_length
        if not row.shares or not self.prefixes.on or (new < worth and not (new and self._awaited(row))):
            return
        if not self.prefixes.has(tokens, row.salt):
            assert row.slot is not None
            self.prefixes.add(tokens, pool.snapshot(row.slot), row.salt)
        row.known_length = row.read

    def _save(self, rows: Sequence[Row], steps: int) -> None:
        """Save what a call overwrites of bounded caches that are full, so that their ends can be kept."""
        for row in rows:
            assert row.slot is not None
            wanted = steps > 1 and self.prefixes.on and len(rows) <= _FEW and row.shares
            row.checkpoint = self._in_use().checkpoint(row.slot, steps) if wanted else None

    def _keep_ended(self, row: Row) -> None:
        """Keep a whole text, which the next turn of a conversation begins with: all but its last token, which
        was never read, or all up to its last call."""
        beyond, pool = row.read - (len(row.seen) - 1), self._in_use()  # tokens that were made after the end
        assert row.slot is not None
        if beyond > 0:
            try:
                pool.rewind(row.slot, beyond)
                row.read -= beyond
            except DogeExportError:  # a full bounded cache
                if row.checkpoint is None:  # the end of the prompt has to do
                    return
                pool.go_back(row.slot, row.checkpoint)
                row.read = row.checkpoint.length
        self._stay(row)

    def _stay(self, row: Row) -> None:
        """Leave what a row has read in its slot, until that is needed."""
        if self._residents is None or row.slot is None or row.read == 0 or not row.shares:
            return
        self._residents.leave(Resident(row.slot, row.seen[: row.read], row.salt, row.known_length))
        row.slot = None

    def _residents_in_use(self) -> Residents:
        assert self._residents is not None
        return self._residents

    def _timed(self, rows: int) -> StepsPerCall:
        return self._steps.setdefault(rows, StepsPerCall())

    def _in_use(self) -> SlotPool:
        assert self._pool is not None
        return self._pool
