"""The scheduler: every text is what `stream` makes of it alone, whatever joins, leaves or begins alike."""

import random
from dataclasses import replace
from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.runtime import Event, GenerationOptions, Session, pool_sizes, stream
from doge_export.runtime.scheduling import Cancelled, Job, PrefixStore, Scheduler, can_be_pooled
from doge_export.runtime.scheduling import scheduler as scheduling
from doge_export.runtime.scheduling.pieces import PromptBudget

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
    monkeypatch.setattr(scheduling, "_WORTH", 4)
    monkeypatch.setattr(scheduling, "_BOUNDARY", 16)


class Request:
    """A job and what was delivered for it."""

    def __init__(self, prompts: list[list[int]], options: GenerationOptions, salt: str = "") -> None:
        self.prompts, self.options = prompts, options
        self.events: list[Event] = []
        self.ends: list[BaseException | None] = []
        self.job = Job(prompts, options, None, self.events.extend, self.ends.append, salt=salt)

    def expected(self, session: Session) -> dict[int, list[Event]]:
        return self.by_row(list(stream(session, self.prompts, self.options)))

    @staticmethod
    def by_row(events: list[Event]) -> dict[int, list[Event]]:
        return {row: [each for each in events if each.row == row] for row in {each.row for each in events}}


def run(scheduler: Scheduler, *requests: Request) -> None:
    for each in requests:
        scheduler.add(each.job)
    while not scheduler.idle:
        scheduler.step()


def ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def random_request(rng: random.Random, shared: list[int]) -> Request:
    beginning = shared[: rng.choice([0, 0, 10, 33, 60])]
    prompts = [beginning + ids(rng, rng.choice([1, 2, 17, 50])) for _ in range(rng.choice([1, 1, 2, 3]))]
    if rng.random() < 0.3:
        prompts = prompts[:1] * 3
    options = GenerationOptions(
        max_new_tokens=rng.choice([1, 4, 20, 45]),
        temperature=rng.choice([0, 0, 0.7, 1.5]),
        top_k=rng.choice([0, 30]),
        top_p=rng.choice([1.0, 0.9]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.4]),
        sequence_bias=rng.choice([(), (((5,), 4.0),)]),
        suppress_tokens=rng.choice([(), (7, 8)]),
        eos_token_ids=tuple(rng.sample(range(VOCAB), rng.choice([0, 6]))),
        seed=rng.randrange(1000),
    )
    return Request(prompts, options, salt=rng.choice(["", "", "a"]))


@pytest.mark.parametrize("seed", range(3))
def test_every_text_is_what_it_is_alone(session: Session, seed: int) -> None:
    rng = random.Random(seed)
    shared = ids(rng, 60)
    requests = [random_request(rng, shared) for _ in range(24)]
    prefixes = PrefixStore(1 << 20)
    scheduler = Scheduler(session, rng.choice([1, 3, 8]), prefixes)
    waiting, cancelled = list(requests), set()
    while waiting or not scheduler.idle:
        while waiting and rng.random() < 0.4:
            scheduler.add(waiting.pop(0).job)
        going = [each for each in requests if each.events and not each.ends]
        if going and rng.random() < 0.1:
            (one := rng.choice(going)).job.cancelled = True
            cancelled.add(id(one))
        for each in going:
            each.job.paused = rng.random() < 0.2
        scheduler.step()
    assert prefixes.use.hits > 0
    for each in requests:
        assert len(each.ends) == 1
        expected, made = each.expected(session), Request.by_row(each.events)
        if id(each) in cancelled and isinstance(each.ends[0], Cancelled):
            assert all(events == expected[row][: len(events)] for row, events in made.items())
        else:
            assert (each.ends[0], made) == (None, expected)
    assert scheduler.pool is not None and scheduler._residents is not None
    while scheduler._residents:
        scheduler._residents.give_up()
    assert not scheduler.pool.rows  # every slot is free again


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
    assert Request.by_row(second.events) == second.expected(still)
    other = Request(second.prompts, second.options, salt="somebody else")
    run(scheduler, other)
    assert use.hits == 1
    assert other.events == second.events


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


def test_prompts_share_what_a_call_can_bear() -> None:
    budget = PromptBudget()
    assert budget.shared({0: 1000}, decoding=False) == {0: 512}
    assert budget.shared({0: 1000, 1: 10, 2: 20}, decoding=True) == {1: 10, 2: 20, 0: 98}
    for _ in range(50):
        budget.took(100, 3, 1, seconds=1.0)
    assert budget.shared({0: 1000}, decoding=True) == {0: 32}
    for _ in range(50):
        budget.took(30, 3, 1, seconds=0.001)
    assert budget.shared({0: 1000, 1: 1000}, decoding=True) == {0: 256, 1: 256}
