"""One contract for both journals, then what is SQLite's own and what is the twin's own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from dimnode.ports import Journal
from dimnode.state import schema
from dimnode.state.journal import JournalSettings, open_journal
from dimnode.state.memory_journal import MemoryJournal
from tests.support import entries as e


@pytest.fixture(params=["sqlite", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal()
    else:
        async with open_journal(tmp_path / "journal.db") as opened:
            yield opened


# --- the contract --------------------------------------------------------------------------------


async def test_entries_come_back_in_order_of_arrival(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1)])
    await journal.append([e.attempt(1)])
    assert await journal.load(e.JOB) == (e.core(), e.claim(1), e.attempt(1))
    assert await journal.load("job-unknown") == ()


async def test_known_entries_are_ignored(journal: Journal) -> None:
    await journal.append([e.core(), e.core()])
    await journal.append([e.core()])
    await journal.append([])
    assert await journal.load(e.JOB) == (e.core(),)


async def test_unknown_kinds_are_kept(journal: Journal) -> None:
    novelty = e.raw(type="novelty", job=e.JOB, x=1)
    await journal.append([novelty])
    assert await journal.load(e.JOB) == (novelty,)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\xa0"])
async def test_what_is_no_entry_is_refused_and_nothing_of_the_call_is_stored(journal: Journal, payload: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await journal.append([e.core(), SignedEntry(payload, "p", b"")])
    assert await journal.load(e.JOB) == ()


async def test_unfinished_and_recent(journal: Journal) -> None:
    for name in ("job-1", "job-2", "job-3"):
        await journal.append([e.core(name)])
    await journal.append([e.claim(1, job="job-4"), e.outcome(1, "failed", job="job-2")])
    assert await journal.unfinished() == ("job-1", "job-3")
    assert await journal.recent(3) == ("job-3", "job-2", "job-1")
    await journal.append([e.core("job-4")])
    assert await journal.unfinished() == ("job-1", "job-3", "job-4")
    assert await journal.recent(3) == ("job-4", "job-3", "job-2")


async def test_discarded_entries_are_gone_and_the_job_is_not(journal: Journal) -> None:
    await journal.append([e.core(), e.attempt(1), e.outcome(1, "completed")])
    await journal.discard(e.JOB, [e.attempt(1).id, "unknown"])
    await journal.discard(e.JOB, [])
    assert await journal.load(e.JOB) == (e.core(), e.outcome(1, "completed"))
    assert await journal.recent(1) == (e.JOB,)


async def test_small_values(journal: Journal) -> None:
    assert await journal.get("election.n") is None
    await journal.put("election.n", b"1")
    await journal.put("election.n", b"2")
    assert await journal.get("election.n") == b"2"


async def test_ballots_only_rise(journal: Journal) -> None:
    assert await journal.raise_ballot("job", Ballot(2, "p", "b")) == Ballot(2, "p", "b")
    assert await journal.raise_ballot("job", Ballot(1, "z", "z")) == Ballot(2, "p", "b")
    assert await journal.raise_ballot("job", Ballot(2, "q", "a")) == Ballot(2, "q", "a")
    assert await journal.raise_ballot("other", Ballot(1, "p", "b")) == Ballot(1, "p", "b")


async def test_many_at_once_and_some_cancelled(journal: Journal) -> None:
    acknowledged: list[str] = []

    async def one(i: int) -> None:
        await journal.append([e.core(f"job-{i}")])
        acknowledged.append(f"job-{i}")

    async with trio.open_nursery() as nursery:
        for i in range(60):
            nursery.start_soon(one, i)
        await trio.lowlevel.checkpoint()
        if len(acknowledged) < 60:
            nursery.cancel_scope.deadline = trio.current_time() + 0.003
    await journal.append([e.core("job-last")])
    assert set(acknowledged) <= set(await journal.recent(1000))


async def test_after_closing_calls_are_refused(journal: Journal) -> None:
    await journal.append([e.core()])
    await journal.aclose()
    for call in (journal.append([e.claim(1)]), journal.load(e.JOB), journal.put("k", b"")):
        with pytest.raises(Unavailable):
            await call


# --- SQLite --------------------------------------------------------------------------------------


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.append([e.core(), e.claim(1)])
        await journal.put("k", b"v")
        await journal.raise_ballot(e.JOB, Ballot(3, "p", "b"))
    async with open_journal(path) as journal:
        assert await journal.load(e.JOB) == (e.core(), e.claim(1))
        assert await journal.get("k") == b"v"
        assert await journal.raise_ballot(e.JOB, Ballot(1, "p", "b")) == Ballot(3, "p", "b")


async def test_concurrent_appends_share_transactions(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", JournalSettings(max_batch=50)) as journal:
        async with trio.open_nursery() as nursery:
            for i in range(200):
                nursery.start_soon(journal.append, [e.core(f"job-{i}")])
        counts = journal.statistics()
        assert counts.operations == 200
        assert 4 <= counts.transactions <= 40


async def test_the_file_is_durable_by_its_pragmas(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        found = {p: journal._writer.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous", "fullfsync")}
        assert found == {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1}


async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with open_journal(path, JournalSettings(max_pages=40)) as journal:
        await journal.append([e.core()])
        with pytest.raises(ResourceExhausted) as caught:
            await journal.append([e.claim(1), e.core("job-big", spec=b"x" * 500_000)])
        assert caught.value.retry_after is not None
        assert await journal.load(e.JOB) == (e.core(),), "the whole call is rolled back"
        await journal.append([e.claim(1)])
        assert journal.statistics().failures == 1
    async with open_journal(path) as journal:
        assert await journal.load(e.JOB) == (e.core(), e.claim(1))


async def test_a_read_only_file_is_a_clear_error(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.append([e.core()])
        journal._writer.execute("PRAGMA query_only = ON")
        with pytest.raises(ResourceExhausted):
            await journal.append([e.claim(1)])
        assert await journal.load(e.JOB) == (e.core(),)


async def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        async with open_journal(tmp_path / "nowhere" / "j.db"):
            pass


async def _big(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.append([e.core(f"job-{i}", spec=b"x" * 3000) for i in range(200)])


@pytest.mark.parametrize("damage", ["torn", "garbage", "holes"])
async def test_damage_is_detected_and_said(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "j.db"
    await _big(path)
    whole = path.read_bytes()
    if damage == "torn":
        path.write_bytes(whole[: len(whole) // 2 - 100])
    elif damage == "garbage":
        path.write_bytes(b"this is not a database at all, not even nearly".ljust(8192, b"."))
    else:
        path.write_bytes(whole[:4096] + b"\0" * 65536 + whole[4096 + 65536 :])
    with pytest.raises(DataLoss, match="damaged"):
        async with open_journal(path):
            pass


async def test_damage_that_is_met_later_is_said_too(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    await _big(path)
    whole = path.read_bytes()
    middle = len(whole) // 8192 * 4096
    path.write_bytes(whole[:middle] + b"\xff" * 65536 + whole[middle + 65536 :])

    async def read_all() -> None:
        async with open_journal(path, JournalSettings(check_bytes=0)) as journal:
            for i in range(200):
                await journal.load(f"job-{i}")

    with pytest.raises(DataLoss):
        await read_all()


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(FailedPrecondition, match="newer"):
        async with open_journal(path):
            pass


def test_an_older_format_is_migrated_as_a_whole_or_not_at_all() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection)

    def broken(c: sqlite3.Connection) -> None:
        c.execute("CREATE TABLE half (x)")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        schema.prepare(connection, {schema.VERSION: broken}, schema.VERSION + 1)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone()[0] == 0
    schema.prepare(connection, {schema.VERSION: lambda c: c.execute("CREATE TABLE more (x)") and None}, schema.VERSION + 1)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION + 1
    connection.close()


async def test_cancelling_the_owner_still_writes_what_was_in_line(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    done: list[int] = []

    async def one(journal: Journal, i: int) -> None:
        await journal.append([e.core(f"job-{i}")])
        done.append(i)

    with trio.CancelScope() as scope:
        async with open_journal(path) as journal, trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(one, journal, i)
            while not done:
                await trio.sleep(0)
            scope.cancel()
    async with open_journal(path) as journal:
        assert {f"job-{i}" for i in done} <= set(await journal.recent(100))


# --- the twin ------------------------------------------------------------------------------------


async def test_a_crash_loses_exactly_what_was_not_acknowledged(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=0.01)
    await journal.append([e.core()])
    failed: list[bool] = []

    async def late() -> None:
        try:
            await journal.append([e.claim(1)])
        except Unavailable:
            failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.sleep(0.005)
        after = journal.crash()
    assert failed == [True]
    assert await after.load(e.JOB) == (e.core(),)


async def test_the_twins_disk_can_be_full() -> None:
    journal = MemoryJournal()
    journal.disk.full = True
    with pytest.raises(ResourceExhausted):
        await journal.append([e.core()])
    assert await journal.load(e.JOB) == ()
