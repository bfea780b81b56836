"""The scheduler: every text is what `stream` makes of it alone, whatever joins, leaves or begins alike."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.runtime import (
    Event,
    GenerationOptions,
    Session,
    Statistics,
    drafts,
    generation,
    pool_sizes,
    stream,
)
from doge_export.runtime.generation import stream_alone
from doge_export.runtime.scheduling import Job, PrefixStore, Scheduler, can_be_pooled, reuse
from doge_export.runtime.scheduling import scheduler as scheduling
from doge_export.runtime.self_check import self_check

VOCAB = 257
STILL = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "growing": ({}, {"sliding_window": 14, **STILL}),
    "static, int4": ({"kv_cache": "static", "max_length": 160, "precision": "int4"}, STILL),
    "bounded, int8, experts": (
        {"precision": "int8", "routing": "per-token"},
        {"keep_window_size": 12, "is_moe": True, **STILL},
    ),
    "bounded, the rope turns": ({}, {"keep_window_size": 16}),
}


@pytest.fixture(scope="module", params=CASES)
def session(request: pytest.FixtureRequest, exported: Any) -> Session:
    options, changes = CASES[request.param]
    return Session.open(exported(options, **changes)[1], threads=2)


@pytest.fixture
def still(session: Session) -> Session:
    """One whose rope does not depend on the length of a text."""
    if session.bundle.config.rope_limit is not None:
        pytest.skip("a longer prompt is of no use where the rope turns")
    return session


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts have boundaries and kept beginnings."""
    monkeypatch.setattr(reuse, "_WORTH", 4)
    monkeypatch.setattr(scheduling, "_BOUNDARY", 16)


class Always(drafts.DraftLength):
    """Drafts wherever there is something to draft, whatever calls take."""

    def best(self, most: int) -> int:
        return min(most, 3)


class Request:
    """A job and what was delivered for it."""

    def __init__(self, prompts: list[list[int]], options: GenerationOptions, salt: str = "") -> None:
        self.prompts, self.options = prompts, options
        self.events: list[Event] = []
        self.ends: list[BaseException | None] = []
        self.job = Job(prompts, options, None, self.events.extend, self.ends.append, salt=salt)

    def expected(self, session: Session) -> dict[int, list[Event]]:
        return self.by_row(list(stream_alone(session, self.prompts, self.options)))

    @staticmethod
    def by_row(events: list[Event]) -> dict[int, list[Event]]:
        return {row: [each for each in events if each.row == row] for row in {each.row for each in events}}


def run(scheduler: Scheduler, *requests: Request) -> None:
    for each in requests:
        scheduler.add(each.job)
    run_on(scheduler)


def run_on(scheduler: Scheduler) -> None:
    while not scheduler.idle:
        scheduler.step()


def ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def test_250_texts_are_what_they_are_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of four models: 1,000 mixed requests."""
    for seed, parallel, count in ((0, 1, 50), (1, 3, 50), (2, 32, 150)):
        with monkeypatch.context() as patch:
            if parallel == 1:  # a text that is alone is drafted
                patch.setattr(drafts, "DraftLength", Always)
            result = self_check(session, count, seed, parallel)
        assert result.differing == ()
        assert result.requests == count and result.tokens > 10 * count and result.cancelled > 0
        assert result.reused > 0


def test_the_check_finds_what_is_wrong(still: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that is kept with other numbers than it had."""
    add = PrefixStore.add

    def added(store: PrefixStore, tokens: Any, snapshot: Any, salt: str = "") -> None:
        parts = tuple(np.roll(part, 1, axis=-1) for part in snapshot.parts)
        add(store, tokens, replace(snapshot, parts=parts), salt)

    monkeypatch.setattr(PrefixStore, "add", added)
    result = self_check(still, 60)
    assert result.differing and "differs at token" in result.differing[0]


def test_the_second_turn_reads_what_is_new(still: Session) -> None:
    scheduler = Scheduler(still, 4, PrefixStore(1 << 20))
    first = Request([ids(random.Random(1), 40)], GenerationOptions(max_new_tokens=6))
    run(scheduler, first)
    text = first.prompts[0] + [event.token for event in first.events]
    use = scheduler.prefixes.use
    second = Request([[*text, 9, 10, 11]], GenerationOptions(max_new_tokens=6))
    run(scheduler, second)
    # All that was read of the first turn, but its last token or, where the window is full, the last call.
    assert use.hits == 1 and len(first.prompts[0]) <= use.tokens < len(text)
    assert [event.reused_tokens for event in second.events] == [use.tokens, *[0] * (len(second.events) - 1)]
    assert Request.by_row(second.events) == second.expected(still)
    other = Request(second.prompts, second.options, salt="somebody else")
    run(scheduler, other)
    assert use.hits == 1
    assert other.events == second.events


def test_a_text_that_is_alone_is_drafted(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `stream` does for one; what was wrong is forgotten, also in what is kept for the next turn."""
    scheduler = Scheduler(session, 4, PrefixStore(1 << 20))
    request = Request([[3, 4, 5, 6]], GenerationOptions(max_new_tokens=40, suppress_tokens=(7,)))
    expected = request.expected(session)
    text = request.prompts[0] + [event.token for event in expected[0]]

    def draft(index: drafts.TextIndex, most: int) -> list[int]:
        """Right for two tokens, then wrong."""
        return [*text[len(index) :][:2], 3][:most]

    scheduler.add(request.job)
    assert scheduler.pool is not None
    every, step = [], scheduler.pool.step

    def told(rows: Any, *rest: Any, **more: Any) -> Any:
        every.extend(more.get("every", ()))
        return step(rows, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "DraftLength", Always)
        patch.setattr(drafts.TextIndex, "draft", draft)
        patch.setattr(scheduler.pool, "step", told)
        run_on(scheduler)
    assert every and Request.by_row(request.events) == expected
    again = Request([[*text, 9]], request.options)
    run(scheduler, again)
    assert Request.by_row(again.events) == again.expected(session)


class Letters:
    """Rules by which a text has these tokens, one after another; then there is none left, which rules of
    ours never say: they end a text before."""

    ended = False

    def __init__(self, tokens: list[int]) -> None:
        self._left = tokens

    def allowed(self) -> Any:
        bits = np.zeros(-(-VOCAB // 64) * 64, bool)
        bits[self._left[:1]] = True
        return np.packbits(bits, bitorder="little").view(np.int64)

    def accept(self, token: int) -> None:
        assert token == self._left.pop(0)


def test_rules_that_leave_nothing_end_their_own_text(session: Session) -> None:
    """Beside another text with rules, and one whose options forbid what it would take."""
    scheduler = Scheduler(session, 4)
    options = GenerationOptions(max_new_tokens=4)
    best = Request([[3, 4, 5]], options)
    run(scheduler, best)
    forbidding = replace(options, suppress_tokens=tuple({event.token for event in best.events}))
    stuck, ruled = Request([[3, 4, 5]], options), Request([[6, 7]], options)
    stuck.job.constraints, ruled.job.constraints = [Letters([8, 9])], [Letters([10, 11, 12, 13])]
    other = Request([[3, 4, 5]], forbidding)
    run(scheduler, stuck, ruled, other)
    assert [event.token for event in stuck.events] == [8, 9]
    assert "no token is left" in str(stuck.ends[0])
    assert [event.token for event in ruled.events] == [10, 11, 12, 13] and ruled.ends == [None]
    assert Request.by_row(other.events) == other.expected(session)


def test_several_prompts_are_streamed_by_the_pool(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    options = GenerationOptions(max_new_tokens=20, temperature=0.9, seed=3)
    request = Request([ids(rng, 1 + 9 * at) for at in range(4)], options)
    expected = request.expected(session)
    monkeypatch.setattr(generation, "_MAX_ROWS", 3)  # the last one waits for a place
    statistics, read = Statistics(), []
    made = list(stream(session, request.prompts, options, statistics=statistics, on_prompt=read.append))
    assert Request.by_row(made) == expected
    assert [event.row for event in made] != sorted(event.row for event in made)  # side by side
    assert (statistics.prefill_tokens, statistics.decode_tokens) == (1 + 10 + 19 + 28, 4 * 20 - 1)
    late = list(stream(session, request.prompts, replace(options, max_time=0.0)))
    assert {event.row: event.finish_reason for event in late} == dict.fromkeys(range(4), "length")


def test_what_a_stream_has_read_serves_the_next(still: Session) -> None:
    kept, prompt = PrefixStore(1 << 20), ids(random.Random(9), 30)
    options = GenerationOptions(max_new_tokens=5)
    first = list(stream(still, [prompt], options, prefixes=kept))
    assert len(kept) > 0 and kept.use.hits == 0
    longer = [*prompt, *(event.token for event in first), 4, 5]
    assert list(stream(still, [longer], options, prefixes=kept)) == list(stream(still, [longer], options))
    assert kept.use.hits == 1 and kept.use.tokens >= len(prompt) - 1


def test_copies_of_a_prompt_are_read_once(still: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(still, 4, PrefixStore(1 << 20))
    options = GenerationOptions(max_new_tokens=3, temperature=1.0, seed=4)
    request = Request([ids(random.Random(2), 50)] * 4, options)
    scheduler.add(request.job)
    assert scheduler.pool is not None
    read, step = [], scheduler.pool.step

    def counted(rows: Any, *rest: Any, **more: Any) -> Any:
        read.append(sum(map(len, rows.values())))
        return step(rows, *rest, **more)

    monkeypatch.setattr(scheduler.pool, "step", counted)
    while not scheduler.idle:
        scheduler.step()
    assert sum(read) <= 49 + 4 * 3
    assert sorted(events[0].reused_tokens for events in Request.by_row(request.events).values()) == [
        0,
        *[49] * 3,
    ]
    assert Request.by_row(request.events) == request.expected(still)


def test_a_long_prompt_stalls_nobody(session: Session) -> None:
    """Beside a row that makes tokens, and beside a short prompt that came later."""
    scheduler = Scheduler(session, 4)
    scheduler._budget._tokens = 16
    rng = random.Random(3)
    going = Request([ids(rng, 2)], GenerationOptions(max_new_tokens=100))
    scheduler.add(going.job)
    while not going.events:
        scheduler.step()
    long = Request([ids(rng, 150)], GenerationOptions(max_new_tokens=2))
    short = Request([ids(rng, 5)], GenerationOptions(max_new_tokens=2))
    scheduler.add(long.job)
    scheduler.add(short.job)
    made = len(going.events)
    while not short.ends:
        before = len(going.events)
        scheduler.step()
        assert len(going.events) > before
    assert not long.events
    while not scheduler.idle:
        scheduler.step()
    assert len(going.events) > made
    for each in (going, long, short):
        assert Request.by_row(each.events) == each.expected(session)


def test_places_go_round(session: Session) -> None:
    """A request of one text does not wait for all of one with many."""
    scheduler = Scheduler(session, 2)
    many = Request([[3, 4]] * 6, GenerationOptions(max_new_tokens=4))
    one = Request([[5, 6]], GenerationOptions(max_new_tokens=4))
    scheduler.add(many.job)
    scheduler.add(one.job)
    while not scheduler.idle:
        scheduler.step()
        if one.ends:
            break
    assert not many.ends


def test_what_goes_wrong_ends_its_own_job(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(session, 4)
    good = Request([[3, 4, 5]], GenerationOptions(max_new_tokens=5))
    late = Request([[3, 4, 5]], GenerationOptions(max_new_tokens=5, max_time=0.0))
    run(scheduler, good, late)
    assert [event.finish_reason for event in late.events] == ["length"]  # after the token under way
    assert Request.by_row(good.events) == good.expected(session)
    assert scheduler.pool is not None

    step = scheduler.pool.step
    for error in (DogeExportError("No memory."), RuntimeError("a bug")):

        def fails(*args: Any, error: Exception = error, **more: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(scheduler.pool, "step", fails)
            failed = Request([[3, 4, 5]], GenerationOptions(max_new_tokens=5))
            run(scheduler, failed)
        assert failed.ends == [error]
    assert scheduler.pool.step == step and not scheduler.pool.rows
    again = Request(good.prompts, good.options)
    run(scheduler, again)
    assert again.events == good.events


def test_what_only_the_other_graph_can_do_takes_turns(session: Session) -> None:
    options = GenerationOptions(max_new_tokens=5, no_repeat_ngram_size=2)
    assert not can_be_pooled(session, options)
    assert can_be_pooled(session, replace(options, no_repeat_ngram_size=0))
    scheduler = Scheduler(session, 4)
    pooled = Request([[3, 4, 5]], GenerationOptions(max_new_tokens=5))
    other = Request([[3, 4, 5]], options)
    scheduler.add_unpooled(other.job, stream(session, other.prompts, options))
    run(scheduler, pooled)
    for each in (pooled, other):
        assert each.ends == [None]
        assert Request.by_row(each.events) == each.expected(session)


def test_the_store_keeps_to_its_bytes(still: Session) -> None:
    scheduler = Scheduler(still, 1, PrefixStore(1 << 20))
    run(scheduler, Request([ids(random.Random(5), 30)], GenerationOptions(max_new_tokens=1)))
    one = scheduler.prefixes.bytes // len(scheduler.prefixes)
    store = PrefixStore(3 * one)
    scheduler = Scheduler(still, 1, store)
    texts = [ids(random.Random(6 + at), 17) for at in range(8)]
    for text in texts:
        run(scheduler, Request([text], GenerationOptions(max_new_tokens=1)))
        assert store.bytes <= 3 * one
    assert store.longest(texts[0]) is None
    assert store.longest(texts[-1]) is not None


def test_rows_wait_for_room(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at once as the pool may hold; what could never be is refused, with a remedy that is one."""
    monkeypatch.setattr(pool_sizes, "_KEYS", 8)
    rng = random.Random(8)
    sizes = session.pool(1).sizes
    limit = 2 * sizes.bytes(100) + 1
    scheduler = Scheduler(session, 8, PrefixStore(1 << 20), limit)
    requests = [
        Request([ids(rng, rng.choice([3, 30, 70])) for _ in range(2)], GenerationOptions(max_new_tokens=each))
        for each in (10, 2, 15, 4, 10, 1)
    ]
    for each in requests:
        scheduler.add(each.job)
    most = 0
    while not scheduler.idle:
        scheduler.step()
        assert scheduler.pool is not None and scheduler.pool.bytes <= limit
        most = max(most, scheduler.rows)
    assert most >= 2
    for each in requests:
        assert (each.ends, Request.by_row(each.events)) == ([None], each.expected(session))
    if sizes.most_keys is not None:
        return  # a text of any length fits
    scheduler = Scheduler(session, 8, None, sizes.bytes(150))
    if session.bundle.manifest.decode.cache.max_length is not None:  # type: ignore[union-attr]
        scheduler = Scheduler(session, 8, None, sizes.bytes(1) - 1)
        with pytest.raises(DogeExportError, match=r"need a cache of .* and all texts together may have"):
            scheduler.add(Request([[3]], GenerationOptions(max_new_tokens=1)).job)
        return
    with pytest.raises(DogeExportError, match=r"100 tokens and 1,000 new ones need a cache of") as refused:
        scheduler.add(Request([ids(rng, 100)], GenerationOptions(max_new_tokens=1000)).job)
    fewer = int(str(refused.value.remedy).split(" at most ")[1].split(" ")[0])
    with pytest.raises(DogeExportError):
        scheduler.add(Request([ids(rng, 100)], GenerationOptions(max_new_tokens=fewer + 1)).job)
    with pytest.raises(DogeExportError, match="Shorten") as refused:
        scheduler.add(Request([ids(rng, 160)], GenerationOptions(max_new_tokens=1)).job)
    request = Request([ids(rng, 100)], GenerationOptions(max_new_tokens=fewer))
    run(scheduler, request)
    assert Request.by_row(request.events) == request.expected(session)
