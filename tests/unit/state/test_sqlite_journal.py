"""What is SQLite's own in the journal: files, damage, formats, transactions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from dimnode.core.job_record import Record
from dimnode.domain.record import Ballot, SignedEntry, kind_of
from dimnode.errors import DataLoss, FailedPrecondition, ResourceExhausted
from dimnode.ports import Journal
from dimnode.state import schema
from dimnode.state.journal import JournalSettings, open_journal
from tests.support import entries as e


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


FIRST = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, job TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
        author TEXT NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL, UNIQUE (job, id))""",
    """CREATE TABLE jobs (
        first INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, core INTEGER, finished INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX unfinished ON jobs (core) WHERE core IS NOT NULL AND finished = 0",
    "CREATE TABLE ballots (job TEXT PRIMARY KEY, n INTEGER NOT NULL, peer TEXT NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
    "PRAGMA user_version = 1",
)
"""A journal as the first version of DIM made it."""


def _first(path: Path, entries: list[tuple[str, str, SignedEntry]]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in FIRST:
        connection.execute(statement)
    for seq, (job, kind, x) in enumerate(entries, start=1):
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", (seq, job, x.id, kind, x.author, x.payload, x.signature))
        connection.execute("INSERT OR IGNORE INTO jobs (first, job) VALUES (?, ?)", (seq, job))
        if kind == "core":
            connection.execute("UPDATE jobs SET core = ? WHERE job = ? AND core IS NULL", (seq, job))
        elif kind == "outcome":
            connection.execute("UPDATE jobs SET finished = 1 WHERE job = ?", (job,))
    connection.execute("INSERT INTO ballots VALUES ('job-1', 4, 'p', 'b')")
    connection.execute("INSERT INTO meta VALUES ('k', x'01')")
    connection.close()


async def test_a_journal_of_the_first_format_is_migrated(tmp_path: Path) -> None:
    made = {
        "job-1": [e.core("job-1"), e.claim(1, job="job-1")],
        "job-2": [e.core("job-2"), e.claim(1, job="job-2"), e.outcome(1, "failed", job="job-2"), e.claim(2, job="job-2")],
        e.JOB: [e.core(), e.claim(1), e.assign(1), e.attempt(1), e.outcome(1, "completed")],
    }
    _first(tmp_path / "j.db", [(job, kind_of(x.body()), x) for job, entries in made.items() for x in entries])
    async with open_journal(tmp_path / "j.db", wall=lambda: 100.0) as journal:
        assert await journal.unfinished() == ("job-1", "job-2"), "the second claim undid the failure"
        assert await journal.recent(9) == (e.JOB, "job-2", "job-1")
        for job, entries in made.items():
            assert Record(job, await journal.load(job)) == Record(job, entries)
        assert [(d.job, d.digest) for d in await journal.digests("", 9)] == [(job, Record(job, made[job]).digest) for job in sorted(made)]
        assert len(await journal.load(e.JOB)) == 3, "what a crash had left uncompacted is gone"
        assert await journal.raise_ballot("job-1", e.ballot(1)) == e.ballot(4)
        assert await journal.raise_ballot("job-2", e.ballot(1)) == e.ballot(2), "claims fence"
        assert await journal.get("k") == b"\x01"
        await journal.append([e.core("job-3")])
        assert await journal.unfinished() == ("job-1", "job-2", "job-3")


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
