"""Beginnings of texts on disk: the same bits after a restart, and nothing of others' or of damaged files."""

import errno
import logging
import os
import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationOptions, Session
from doge_export.runtime.scheduling import PrefixFiles, PrefixStore, Scheduler, identity_of
from doge_export.runtime.slot_pool import Snapshot
from tests.runtime.test_scheduler import STILL, Request, ids, run

TEXT = ids(random.Random(1), 60)
Opened = Callable[..., PrefixFiles]


@pytest.fixture(scope="module", params=["growing", "bounded"])
def session(request: pytest.FixtureRequest, exported: Any) -> Session:
    changes = {"sliding_window": 14} if request.param == "growing" else {"keep_window_size": 16}
    return Session.open(exported({}, **changes, **STILL)[1], threads=1)


@pytest.fixture
def opened(tmp_path: Path) -> Generator[Opened]:
    every = []

    def files(identity: str = "ab" * 16, capacity: int = 1 << 20, folder: Path = tmp_path) -> PrefixFiles:
        every.append(made := PrefixFiles(folder, identity, capacity))
        return made

    yield files
    for each in every:
        each.close()


def snapshot(length: int, number: int = 0) -> Snapshot:
    return Snapshot(length, (np.full((2, 1, length), number, np.float32), np.arange(length)))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def served(session: Session, files: PrefixFiles, request: Request) -> PrefixStore:
    """The store of a server that lives for one request."""
    store = PrefixStore(1 << 20, files)
    run(scheduler := Scheduler(session, 2, store), request)
    scheduler.close()
    assert request.ends == [None]
    assert Request.by_row(request.events) == request.expected(session)
    return store


def test_a_restart_forgets_nothing(session: Session, opened: Opened, tmp_path: Path) -> None:
    identity = identity_of(session)
    options = GenerationOptions(max_new_tokens=5)
    served(session, opened(identity), Request([TEXT], options, salt="mine"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    longer = [*TEXT, 5, 6, 7]
    use = served(session, opened(identity), Request([longer] * 2, options, salt="mine")).use
    assert use.hits == 2 and use.tokens >= 2 * 59
    assert served(session, opened(identity), Request([longer], options)).use.hits == 0
    assert served(session, opened("cd" * 16), Request([longer], options, salt="mine")).use.hits == 0


def test_what_was_said_last_is_written_at_the_end(session: Session, opened: Opened) -> None:
    options = GenerationOptions(max_new_tokens=60, eos_token_ids=())
    served(session, opened(), Request([TEXT[:5]], options))
    (length,) = opened().lengths
    assert length > 40


def test_a_cancelled_text_does_not_wait_for_the_disk(session: Session, opened: Opened) -> None:
    identity, options = identity_of(session), GenerationOptions(max_new_tokens=5)
    served(session, opened(identity), Request([TEXT], options))
    scheduler = Scheduler(session, 2, PrefixStore(1 << 20, opened(identity)))
    gone, stays = Request([[*TEXT, 5]], options), Request([[*TEXT, 6]], options)
    scheduler.add(gone.job)
    scheduler.add(stays.job)
    scheduler.step()
    gone.job.cancelled = True
    while not scheduler.idle:
        scheduler.step()
    assert Request.by_row(stays.events) == stays.expected(session)


def test_what_is_damaged_goes_and_what_is_not_ours_stays(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    for number in range(4):
        first.keep(key(number), snapshot(3, number))
    first.close()
    whole, flipped, cut, other = sorted(tmp_path.iterdir())
    flipped.write_bytes(flipped.read_bytes()[:-100] + b"\1" + flipped.read_bytes()[-99:])
    cut.write_bytes(cut.read_bytes()[:150])
    other.write_bytes(whole.read_bytes())  # of another text
    foreign = [tmp_path / "notes.txt", tmp_path / f"{'ab' * 16}-x.doge-prefix", tmp_path / "folder"]
    foreign[0].write_text("mine")
    foreign[1].write_text("mine")
    foreign[2].mkdir()
    link = tmp_path / f"{'ab' * 16}-{key(9).hex()}-3.doge-prefix"
    link.symlink_to(foreign[0])
    files = opened()
    loaded = [files.load(key(number)).result(30) for number in range(4)]
    assert loaded[0] is not None and loaded[0].parts[0].tobytes() == snapshot(3).parts[0].tobytes()
    assert loaded[1:] == [None] * 3
    assert files.load(key(9)).result(30) is None
    assert sorted(tmp_path.iterdir()) == sorted([whole, link, *foreign])
    assert caplog.text.count("is damaged and goes") == 3


def test_a_folder_keeps_to_its_bytes(opened: Opened, tmp_path: Path) -> None:
    first = opened()
    first.keep(key(0), snapshot(9))
    first.close()
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    old = opened()
    for number in range(1, 4):
        old.keep(key(number), snapshot(9))
    old.close()
    for age, file in enumerate(sorted(tmp_path.iterdir())):
        os.utime(file, (1000 + age, 1000 + age))
    tmp_path.joinpath(f"{path.name}.0123abcd.tmp").write_bytes(b"left by a writer that died")
    os.utime(tmp_path / f"{path.name}.0123abcd.tmp", (1000, 1000))
    files = opened(capacity=3 * size)
    assert [files.has(key(number)) for number in range(5)] == [False, True, True, True, False]
    files.touch(key(1))
    files.load(key(2)).result(30)  # it was touched before this was read
    files.keep(key(4), snapshot(9))
    files.keep(key(5), snapshot(9000))
    files.close()
    assert [files.has(key(number)) for number in range(6)] == [False, True, False, True, True, False]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 3 * size


def test_two_servers_share_a_folder(opened: Opened) -> None:
    one, other = opened(), opened()
    one.keep(key(1), snapshot(4))
    one.close()
    other.keep(key(2), snapshot(5))
    other.close()
    third = opened()
    assert third.lengths == {4, 5}
    next(iter(third._folder.glob(f"*{key(1).hex()}*"))).unlink()  # as a server with less room does
    assert third.load(key(1)).result(30) is None
    assert not third.has(key(1))


def test_a_disk_that_refuses_is_one_warning(
    session: Session, opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "write_array", full)
    files = opened(identity_of(session))
    with caplog.at_level(logging.WARNING):
        served(session, files, Request([TEXT], GenerationOptions(max_new_tokens=5)))
    (said,) = [record.getMessage() for record in caplog.records if "prefix_files" in record.name]
    assert "cannot be written: No space left on device. Beginnings of texts are kept in memory" in said
    assert list(files._folder.iterdir()) == []


def test_a_file_is_no_folder(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DogeExportError, match="is no folder"):
        opened(folder=tmp_path / "file")


def test_what_has_other_shapes_is_not_used(session: Session, opened: Opened) -> None:
    """A file that somebody else has put there, whole by its hash."""
    identity, options = identity_of(session), GenerationOptions(max_new_tokens=2)
    files = opened(identity)
    store = PrefixStore(1 << 20, files)
    store.add(TEXT[:20], snapshot(20))
    store.close()
    served(session, opened(identity), Request([TEXT], options))
