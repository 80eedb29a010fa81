"""One contract for both journals, then what is SQLite's own and what is the twin's own."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.domain.record import Ballot, SignedEntry, kind_of
from dimnode.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from dimnode.ports import Journal
from dimnode.state import schema
from dimnode.state.journal import JournalSettings, open_journal
from dimnode.state.memory_journal import MemoryJournal
from tests.support import entries as e


class Wall:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=["sqlite", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path, wall: Wall) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal(wall=wall)
    else:
        async with open_journal(tmp_path / "journal.db", wall=wall) as opened:
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


async def test_discarded_entries_are_gone(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1), e.attempt(1)])
    await journal.discard(e.JOB, [e.attempt(1).id, "unknown"])
    await journal.discard(e.JOB, [])
    assert await journal.load(e.JOB) == (e.core(), e.claim(1))
    assert (await journal.digests("", 9))[0].digest == Record(e.JOB, [e.core(), e.claim(1)]).digest
    await journal.discard(e.JOB, [e.core().id, e.claim(1).id])
    assert (await journal.load(e.JOB), await journal.unfinished(), await journal.recent(9), await journal.digests("", 9)) == (
        (),
        (),
        (),
        (),
    )
    await journal.append([e.core()])
    assert await journal.unfinished() == (e.JOB,)


async def test_a_failure_that_a_later_claim_undid_is_unfinished(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1), e.outcome(1, "failed")])
    assert await journal.unfinished() == ()
    await journal.append([e.claim(2, "q")])
    assert await journal.unfinished() == (e.JOB,)
    await journal.append([e.outcome(2, "expired", "p")])
    assert await journal.unfinished() == (e.JOB,), "below the claim of q"
    await journal.append([e.outcome(2, "expired", "q")])
    assert await journal.unfinished() == ()
    await journal.append([e.outcome(1, "cancelled"), e.claim(9)])
    assert await journal.unfinished() == ()


POOL = [
    e.core(),
    e.core(submitted=7.0),
    *(e.claim(n, peer) for n in (1, 2) for peer in "pq"),
    e.plan(1, x=1),
    e.assign(1),
    *(e.attempt(n, number=n) for n in (1, 2)),
    *(e.outcome(n, s) for n in (1, 2) for s in ("completed", "failed", "expired", "cancelled")),
    *(e.outcome(n, "deleted") for n in (1, 2)),
    e.status(1, "running"),
    e.raw(type="novelty", job=e.JOB, x=1),
]


async def test_it_holds_what_a_record_of_the_same_entries_holds(journal: Journal) -> None:
    """In any order and in any groups: entries, digest, whether it is finished."""
    rng = random.Random(3)
    for _ in range(60):
        chosen = rng.sample(POOL, rng.randint(1, 9))
        cut = rng.randint(0, len(chosen))
        for part in (chosen[:cut], chosen[cut:], rng.sample(chosen, 1)):
            await journal.append(part)
        want = Record(e.JOB, chosen)
        assert Record(e.JOB, await journal.load(e.JOB)) == want
        assert {x.id for x in await journal.load(e.JOB)} == want.ids(), "nothing that compaction would drop is stored"
        listed = (*await journal.digests("", 9), *await journal.digests("", 9, parts=True))
        assert [(d.job, d.digest, d.finished) for d in listed] == [(e.JOB, want.digest, view(want).terminal)]
        await journal.forget([e.JOB])


async def test_digests_come_in_order_and_in_bounded_portions(journal: Journal, wall: Wall) -> None:
    for name in ("job-3", "job-1", "job-2"):
        await journal.append([e.core(name)])
    await journal.append([e.claim(1, job="job-part"), e.outcome(1, "deleted", job="job-0")])
    wall.now = 105.0
    await journal.append([e.claim(1, job="job-2"), e.core("job-1")])
    first = await journal.digests("", 3)
    assert [(d.job, d.finished, d.at) for d in first] == [("job-0", True, 100.0), ("job-1", False, 100.0), ("job-2", False, 105.0)]
    assert first[2].digest == Record("job-2", [e.claim(1, job="job-2"), e.core("job-2")]).digest
    assert [d.job for d in await journal.digests("job-2", 3)] == ["job-3"]
    assert [d.job for d in await journal.digests("", 3, parts=True)] == ["job-part"]
    assert await journal.digests_of(["job-2", "job-0", "job-part", "job-unknown"]) == {"job-0": first[0], "job-2": first[2]}
    assert await journal.digests_of([]) == {}
    await journal.append([e.claim(2, "q", job="job-2")])
    assert [(d.job, d.owner) for d in await journal.digests("job-0", 9)] == [("job-1", ""), ("job-2", "q"), ("job-3", "")]
    await journal.append([e.outcome(2, "deleted", "q", job="job-2")])
    assert (await journal.digests_of(["job-2"]))["job-2"].owner == ""


async def test_many_are_loaded_at_once(journal: Journal) -> None:
    await journal.append([e.core("job-1"), e.core("job-2"), e.claim(1, job="job-2")])
    assert await journal.load_many(["job-2", "job-unknown"]) == {"job-2": (e.core("job-2"), e.claim(1, job="job-2"))}
    assert await journal.load_many([]) == {}


async def test_what_is_forgotten_is_unknown(journal: Journal) -> None:
    await journal.append([e.core("job-1"), e.core("job-2"), e.outcome(1, "failed", job="job-1")])
    await journal.raise_ballot("job-1", e.ballot(9))
    await journal.forget(["job-1", "job-unknown"])
    await journal.forget([])
    assert [d.job for d in await journal.digests("", 9)] == ["job-2"]
    assert (await journal.load("job-1"), await journal.recent(9)) == ((), ("job-2",))
    assert await journal.raise_ballot("job-1", e.ballot(1)) == e.ballot(1)
    await journal.append([e.core("job-1")])
    assert await journal.unfinished() == ("job-2", "job-1")


async def test_a_claim_fences_what_is_decided_below_it(journal: Journal) -> None:
    other = e.core("job-b")
    assert await journal.append([e.core(), e.claim(2, "q")], under={e.JOB: e.ballot(2, "q")}) == {}
    fenced = await journal.append([e.assign(1), other], under={e.JOB: e.ballot(1), "job-b": e.ballot(1)})
    assert fenced == {e.JOB: e.ballot(2, "q")}
    assert await journal.load(e.JOB) == (e.core(), e.claim(2, "q"))
    assert await journal.load("job-b") == (other,), "one fenced job does not spoil the others"
    assert await journal.append([e.assign(1)]) == {}, "merging takes everything"
    assert await journal.append([], under={e.JOB: e.ballot(2, "p")}) == {e.JOB: e.ballot(2, "q")}, "also if there is nothing to store"


async def test_a_job_is_accepted_once(journal: Journal) -> None:
    """Whoever comes first: also a lower claim of somebody else fences what is just being accepted."""
    first, second = e.claim(1, "a"), e.claim(1, "b")
    assert await journal.append([e.core(), first], under={e.JOB: e.ballot(1, "a")}, fresh=[e.JOB]) == {}
    assert await journal.append([e.core(), second], under={e.JOB: e.ballot(1, "b")}, fresh=[e.JOB]) == {e.JOB: e.ballot(1, "a")}
    assert await journal.append([e.core(), first], under={e.JOB: e.ballot(1, "a")}, fresh=[e.JOB]) == {}, "said again"
    assert await journal.load(e.JOB) == (e.core(), first)


async def test_claims_and_raised_ballots_are_one_fence(journal: Journal) -> None:
    await journal.raise_ballot(e.JOB, e.ballot(3))
    assert await journal.append([e.core()], under={e.JOB: e.ballot(2)}) == {e.JOB: e.ballot(3)}
    await journal.append([e.claim(5), e.claim(4)])
    assert await journal.raise_ballot(e.JOB, e.ballot(4)) == e.ballot(5)
    assert await journal.append([e.core()], under={e.JOB: e.ballot(4)}) == {e.JOB: e.ballot(5)}
    with trio.CancelScope() as scope:
        scope.cancel()
        await journal.append([e.claim(7)])
    await journal.append([e.claim(6)])
    assert await journal.raise_ballot(e.JOB, e.ballot(6)) in (e.ballot(6), e.ballot(7))
    fence = await journal.raise_ballot(e.JOB, e.ballot(1))
    assert await journal.append([], under={e.JOB: e.ballot(1)}) == {e.JOB: fence}, "what is remembered is what is on disk"


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
    async with open_journal(tmp_path / "j.db", wall=Wall()) as journal:
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


async def test_writes_become_durable_in_order_also_when_the_disk_gets_faster(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.put, "k", b"first")
        await trio.sleep(0.1)
        journal.sync = 0.0
        nursery.start_soon(journal.put, "k", b"second")
        await trio.sleep(0.1)
        assert await journal.get("k") is None
    assert await journal.get("k") == b"second"


async def test_a_cancelled_write_is_not_half_there(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=1.0)
    with trio.move_on_after(0.5):
        await journal.append([e.core(), e.claim(1)])
    assert await journal.load(e.JOB) == ()
    await journal.put("k", b"")
    assert len(await journal.load(e.JOB)) == 2


async def test_the_twins_disk_can_be_full() -> None:
    journal = MemoryJournal()
    journal.disk.full = True
    with pytest.raises(ResourceExhausted):
        await journal.append([e.core()])
    assert await journal.load(e.JOB) == ()
    journal.disk.full = False
    await journal.append([e.core()])
    assert await journal.load(e.JOB) == (e.core(),)
