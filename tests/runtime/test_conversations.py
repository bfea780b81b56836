"""Conversations: each turn is what it is alone, whatever is left of the turns before it, and wherever."""

import random
from pathlib import Path
from typing import Any

import pytest

from doge_export.runtime import GenerationOptions, Session, pool_sizes, stream
from doge_export.runtime.scheduling import Cancelled, PrefixFiles, PrefixStore, Scheduler, reuse
from doge_export.runtime.scheduling.prefixes import PrefixUse
from doge_export.runtime.self_check import RandomRequests
from tests.runtime import test_scheduler
from tests.runtime.test_scheduler import Request, ids, run

session, still, small_steps = test_scheduler.session, test_scheduler.still, test_scheduler.small_steps


def test_the_next_turn_goes_on_in_the_same_slot(still: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that ended in the middle of a call, and of one whose client left; others get its slot."""
    scheduler, rng = Scheduler(still, 4, PrefixStore(1 << 20)), random.Random(1)
    text, read = ids(rng, 40), []
    probe = list(stream(still, [text], GenerationOptions(max_new_tokens=30)))
    stop = (probe[21].token,)
    use, options = scheduler.prefixes.use, GenerationOptions(max_new_tokens=30, eos_token_ids=stop)
    for turn in range(4):
        request, before = Request([text], options), use.tokens
        scheduler.add(request.job)
        assert scheduler.pool is not None
        with monkeypatch.context() as patch:
            if turn > 0:
                patch.setattr(scheduler.pool, "restore", None)
            while not scheduler.idle:
                request.job.cancelled = turn == 2 and len(request.events) > 3
                scheduler.step()
        expected = request.expected(still)[0]
        assert request.events == expected[: len(request.events)]
        assert turn == 2 or len(request.events) == len(expected)
        assert use.tokens - before >= len(read)
        read = text
        text = [*text, *(event.token for event in request.events), *ids(rng, 5)]
    assert scheduler.pool.rows.keys() == {0}
    run(scheduler, *(Request([ids(rng, 30)], GenerationOptions(max_new_tokens=2)) for _ in range(4)))
    assert scheduler.pool.slots == 4 and len(scheduler.pool.rows) == 4  # its own was needed
    before = use.tokens
    request = Request([text], GenerationOptions(max_new_tokens=3))
    run(scheduler, request)
    assert Request.by_row(request.events) == request.expected(still)
    assert use.tokens - before >= len(read)  # from the copy that was made then


@pytest.mark.parametrize("seed", range(2))
def test_conversations(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Turns that go on with what was said, or part from it, in little memory, before and after a restart."""
    monkeypatch.setattr(pool_sizes, "_KEYS", 8)
    rng = random.Random(seed)
    limit = rng.choice([3, 5]) * session.pool(1).sizes.bytes(130)
    said, use = [ids(rng, rng.choice([3, 30])) for _ in range(3)], PrefixUse()
    for _ in range(2):
        prefixes = PrefixStore(rng.choice([30_000, 1 << 20]), PrefixFiles(tmp_path, "ab" * 16, 1 << 20))
        scheduler = Scheduler(session, rng.choice([2, 5]), prefixes, limit)
        for _ in range(4):
            turns = []
            for text in rng.choices(said, k=rng.choice([1, 3, 6])):
                cut = text if rng.random() < 0.7 else text[: rng.randrange(len(text))]
                _, options, _ = RandomRequests(rng, session).one()
                request = Request([[*cut, *ids(rng, rng.choice([1, 6]))]], options)
                if len(request.prompts[0]) + 45 < 130:
                    turns.append(request)
                    scheduler.add(request.job)
            while not scheduler.idle:
                for each in turns:
                    each.job.cancelled = each.job.cancelled or rng.random() < 0.01
                scheduler.step()
                assert scheduler.pool is not None and scheduler.pool.bytes <= limit
                if rng.random() < 0.1:
                    scheduler.tidy()
            for each in turns:
                expected = each.expected(session).get(0, [])
                assert each.events == expected[: len(each.events)]
                assert isinstance(each.ends[0], Cancelled) or len(each.events) == len(expected)
                said.append([*each.prompts[0], *(event.token for event in each.events)])
        scheduler.close()
        use.found(prefixes.use.tokens)
    assert use.tokens > 0


def test_ends_are_copied_when_there_is_time(still: Session) -> None:
    scheduler = Scheduler(still, 4, PrefixStore(1 << 20))
    options = GenerationOptions(max_new_tokens=9)
    run(scheduler, *(Request([ids(random.Random(at), 20)], options) for at in (1, 2)))
    kept = len(scheduler.prefixes)
    assert [scheduler.tidy() for _ in range(3)] == [True, True, False]
    assert len(scheduler.prefixes) == kept + 2


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_what_turned_likewise_is_reused(exported: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The rope's limit is 24 positions: up to there all turn alike, and beyond it each length has a rope of
    its own, or all have the other one."""
    monkeypatch.setattr(reuse, "_WORTH", 2)
    long = {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 24,
            "short_factor": [1.0] * 8,
            "long_factor": [1.5 + at for at in range(8)],
        },
        "max_position_embeddings": 48,
    }
    session = Session.open(exported({}, keep_window_size=16, **(long if kind == "longrope" else {}))[1], 2)
    scheduler = Scheduler(session, 4, PrefixStore(1 << 20))
    rng, use = random.Random(3), scheduler.prefixes.use
    text, read = ids(rng, 8), []
    for new, prompts in ((5, 1), (13, 1), (4, 3), (4, 1), (4, 1)):  # 8, 18, 36, 45 and 54 tokens of prompts
        before = use.tokens
        request = Request([text] * prompts, GenerationOptions(max_new_tokens=new))
        run(scheduler, request)
        assert Request.by_row(request.events) == request.expected(session)
        read.append((len(text), use.tokens - before))
        text = [*text, *(event.token for event in request.events if event.row == 0), *ids(rng, 5)]
    assert [length for length, _ in read] == [8, 18, 36, 45, 54]
    assert read[0][1] == 0 and read[1][1] > 6
    assert read[2][1] == 2 * 35  # what the prompt before it has read turned otherwise
    again = [reused > 30 for _, reused in read[3:]]
    assert again == ([True] * 2 if kind == "longrope" else [False] * 2)
    before = use.tokens
    request = Request([[*text[:53], 9]], GenerationOptions(max_new_tokens=2))  # as long as the one before
    run(scheduler, request)
    assert Request.by_row(request.events) == request.expected(session)
    assert use.tokens - before >= 48  # the last boundary
