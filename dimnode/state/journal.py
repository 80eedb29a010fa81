"""The node's durable memory on SQLite (`dimnode.ports.Journal`).

One task owns the writing connection. What arrives while a transaction is being fsynced waits and shares the
next one (group commit), so that the number of appends per second is not the number of fsyncs per second.
Reading goes over a second connection; WAL lets both work at once. All SQLite calls run in threads.

A failed transaction (disk full, read-only) is rolled back as a whole and everyone in it is told; the file
stays as it was.
"""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import DimError, ResourceExhausted, Unavailable
from dimnode.ports import JobDigest
from dimnode.state import rows, schema
from dimnode.state.bulk import Append, append_all

T = TypeVar("T")
Op = Callable[[sqlite3.Connection], Any] | Append

_DIGESTS = "SELECT job, digest, finished, at, claim, final FROM jobs WHERE"
_WHOLE = f"(core IS NOT NULL OR final = {rows.DELETED:d})"
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class JournalSettings:
    max_batch: int = 512
    """Appends that share one transaction at the most."""
    max_waiting: int = 4096
    """Appends that may wait; further callers wait before they get in line."""
    busy_timeout: float = 5.0
    """Seconds to wait for another process that holds the file (a backup, say)."""
    check_bytes: int = 256 * 1024 * 1024
    """A file up to this size is checked for damage when it is opened; a larger one when it is read."""
    remembered_ballots: int = 2_000
    """Jobs whose highest ballot is known without a look at the disk."""
    checkpoint_pages: int = 4_000
    """Pages (4 KiB) of the write-ahead log after which they go to the file: ids are random, so that few jobs change many pages, the same ones again
    and again."""
    max_pages: int | None = None
    """Bound of the file in SQLite pages (4 KiB); None: the disk's."""


@dataclass(slots=True)
class JournalStatistics:
    operations: int = 0
    transactions: int = 0
    failures: int = 0


@dataclass(eq=False, slots=True)
class _Waiting:
    op: Op
    done: trio.Event
    settle: Callable[[Any], None] | None = None
    """Called with the result once it is durable, also if nobody waits for it any more."""
    result: Any = None
    error: DimError | None = None


@dataclass(eq=False, slots=True)
class _Asked:
    statement: str
    values: Sequence[Any]
    done: trio.Event
    found: list[Any] | DimError | None = None


@asynccontextmanager
async def open_journal(
    path: Path, settings: JournalSettings | None = None, *, wall: Callable[[], float] = time.time
) -> AsyncGenerator[SqliteJournal]:
    """The journal at ``path``, made if there is none; its folder must exist. ``wall`` tells the time of `JobDigest.at`.

    Raises `DataLoss` for a damaged file, `FailedPrecondition` for one of a later version,
    `ResourceExhausted` if it cannot be written.
    """
    settings = settings or JournalSettings()
    writer = await trio.to_thread.run_sync(_open_writer, path, settings)
    try:
        reader = await trio.to_thread.run_sync(_connect, path, settings)
    except BaseException:
        writer.close()
        raise
    journal = SqliteJournal(writer, reader, settings, wall)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            try:
                yield journal
            except Exception as e:  # noqa: BLE001 - raised again below, not wrapped in this nursery's group
                failure = e
            finally:
                with trio.CancelScope(shield=True):
                    await journal.aclose()
        if failure is not None:
            raise failure
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_close, reader, writer)


class SqliteJournal:
    """Made by `open_journal`, which also runs it."""

    def __init__(
        self, writer: sqlite3.Connection, reader: sqlite3.Connection, settings: JournalSettings, wall: Callable[[], float] = time.time
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._settings = settings
        self._wall = wall
        self._line: list[_Waiting] = []
        self._arrived = trio.Event()
        self._places = trio.CapacityLimiter(settings.max_waiting)
        self._asked: list[_Asked] = []
        self._asking = trio.Event()
        self._closing = False
        self._closed = trio.Event()
        self._ballots: OrderedDict[str, Ballot] = OrderedDict()
        self._counts = JournalStatistics()

    def statistics(self) -> JournalStatistics:
        return self._counts

    # --- dimnode.ports.Journal ------------------------------------------------------------------

    async def append(
        self, entries: Sequence[SignedEntry], *, under: Mapping[str, Ballot] | None = None, fresh: Collection[str] = ()
    ) -> dict[str, Ballot]:
        by_job: dict[str, list[rows.Row]] = {job: [] for job in under or ()}
        for entry in entries:
            r = rows.row(entry)
            by_job.setdefault(r.job, []).append(r)
        if not by_job:
            return {}
        append = Append(by_job, under or {}, fresh, self._wall())
        await self._write(append, lambda _: self._learn(by_job, append.fenced))
        return append.fenced

    def _learn(self, by_job: Mapping[str, list[rows.Row]], fenced: Mapping[str, Ballot]) -> None:
        """Claims among what was appended fence: what is remembered rises with them."""
        for job in by_job.keys() - fenced.keys():  # of this batch only: what is remembered has many thousands
            if (known := self._ballots.get(job)) is not None:
                self._ballots[job] = max([known, *[r.claim for r in by_job[job] if r.claim is not None]])

    async def load(self, job: str) -> tuple[SignedEntry, ...]:
        found = await self._read("SELECT payload, author, signature FROM entries WHERE job = ? ORDER BY seq", (job,))
        return tuple(SignedEntry(*columns) for columns in found)

    async def load_many(self, jobs: Sequence[str]) -> dict[str, tuple[SignedEntry, ...]]:
        if not jobs:
            return {}
        marks = ",".join("?" * len(jobs))
        statement = f"SELECT job, payload, author, signature FROM entries WHERE job IN ({marks}) ORDER BY seq"  # noqa: S608 - marks only
        found: dict[str, list[SignedEntry]] = {}
        for job, *columns in await self._read(statement, tuple(jobs)):
            found.setdefault(job, []).append(SignedEntry(*columns))
        return {job: tuple(entries) for job, entries in found.items()}

    async def discard(self, job: str, ids: Sequence[str]) -> None:
        if ids:
            await self._write(lambda c: rows.discard(c, job, tuple(ids)))

    async def unfinished(self) -> tuple[str, ...]:
        return tuple(job for (job,) in await self._read("SELECT job FROM jobs WHERE core IS NOT NULL AND finished = 0 ORDER BY core", ()))

    async def recent(self, limit: int) -> tuple[str, ...]:
        return tuple(
            job for (job,) in await self._read("SELECT job FROM jobs WHERE core IS NOT NULL ORDER BY first DESC LIMIT ?", (limit,))
        )

    async def get(self, key: str) -> bytes | None:
        found = await self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return found[0][0] if found else None

    async def put(self, key: str, value: bytes) -> None:
        statement = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        await self._write(lambda c: c.execute(statement, (key, value)) and None)

    async def raise_ballot(self, job: str, ballot: Ballot) -> Ballot:
        known = self._ballots.get(job)
        if known is None or known < ballot:
            known = await self._write(lambda c: rows.raise_ballot(c, job, ballot), lambda highest: self._remember({job: highest}))
        return known

    def _remember(self, highest: Mapping[str, Ballot]) -> None:
        """In the order of the transactions, so that what is remembered is what is on disk."""
        for job, ballot in highest.items():
            self._ballots[job] = ballot
            self._ballots.move_to_end(job)
        while len(self._ballots) > self._settings.remembered_ballots:
            self._ballots.popitem(last=False)

    async def digests(self, after: str, limit: int, *, parts: bool = False) -> tuple[JobDigest, ...]:
        statement = f"{_DIGESTS} job > ? AND {'NOT ' if parts else ''}{_WHOLE} ORDER BY job LIMIT ?"
        return tuple(_digest(*columns) for columns in await self._read(statement, (after, limit)))

    async def digests_of(self, jobs: Sequence[str]) -> dict[str, JobDigest]:
        if not jobs:
            return {}
        marks = ",".join("?" * len(jobs))
        found = await self._read(f"{_DIGESTS} job IN ({marks}) AND {_WHOLE}", tuple(jobs))
        return {columns[0]: _digest(*columns) for columns in found}

    async def forget(self, jobs: Sequence[str]) -> None:
        if jobs:
            gone = tuple(jobs)
            await self._write(lambda c: rows.forget(c, gone), lambda _: self._unremember(gone))

    def _unremember(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            self._ballots.pop(job, None)

    async def aclose(self) -> None:
        """Writes what is in line, then refuses further calls. `open_journal` closes the file."""
        self._closing = True
        self._arrived.set()
        await self._closed.wait()

    # --- writing --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads and writes. Ends after `aclose`, or when cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_reader)
            await self._run_writer()
            nursery.cancel_scope.cancel()

    async def _run_writer(self) -> None:
        """Takes all that wait, commits them together."""
        try:
            while self._line or not self._closing:
                if not self._line:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                    continue
                batch, self._line = self._line[: self._settings.max_batch], self._line[self._settings.max_batch :]
                await self._commit(batch)
        finally:
            self._closing = True
            self._closed.set()
            for waiting in self._line:
                waiting.error = _closed()
                waiting.done.set()

    async def _write(self, op: Callable[[sqlite3.Connection], T] | Append, settle: Callable[[T], None] | None = None) -> T:
        async with self._places:
            if self._closing:
                raise _closed()
            waiting = _Waiting(op, trio.Event(), settle)
            self._line.append(waiting)
            self._arrived.set()
            await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    async def _commit(self, batch: list[_Waiting]) -> None:
        error: DimError | None = _closed()
        try:
            with trio.CancelScope(shield=True):
                error = await trio.to_thread.run_sync(_transaction, self._writer, batch)
        finally:
            self._counts.transactions += 1
            self._counts.operations += len(batch)
            self._counts.failures += error is not None
            for waiting in batch:
                waiting.error = error
                if error is None and waiting.settle is not None:
                    waiting.settle(waiting.result)
                waiting.done.set()

    # --- reading --------------------------------------------------------------------------------

    async def _run_reader(self) -> None:
        """Takes all that wait, too: a way to a thread and back takes longer than most reads."""
        try:
            while True:
                await self._asking.wait()
                self._asking = trio.Event()
                asked, self._asked = self._asked, []
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_select_all, self._reader, asked)
                for each in asked:
                    each.done.set()
        finally:
            for each in self._asked:
                each.found = _closed()
                each.done.set()

    async def _read(self, statement: str, values: Sequence[Any]) -> list[Any]:
        if self._closing:
            raise _closed()
        asked = _Asked(statement, values, trio.Event())
        self._asked.append(asked)
        self._asking.set()
        await asked.done.wait()
        if not isinstance(asked.found, list):
            raise asked.found or _closed()
        return asked.found


# --- in threads ----------------------------------------------------------------------------------


def _connect(path: Path, settings: JournalSettings) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=settings.busy_timeout, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as e:
        raise _dim_error(e) from e
    return connection


def _open_writer(path: Path, settings: JournalSettings) -> sqlite3.Connection:
    connection = _connect(path, settings)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        # Else each statement with many rows has a file of its own for a while, to be undone from.
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {settings.checkpoint_pages:d}")
        if path.stat().st_size <= settings.check_bytes:
            schema.check(connection)
        schema.prepare(connection)
        if settings.max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {settings.max_pages:d}")
    except BaseException as e:
        connection.close()
        if isinstance(e, sqlite3.Error):
            raise _dim_error(e) from e
        raise
    return connection


def _close(reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
    with closing(writer), closing(reader):
        pass


def _transaction(connection: sqlite3.Connection, batch: list[_Waiting]) -> DimError | None:
    """All or none. The batch is told the error; anything but SQLite's own errors is a bug and ends the node."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            appends: list[Append] = []
            for waiting in batch:
                if isinstance(waiting.op, Append):
                    appends.append(waiting.op)
                    continue
                append_all(connection, appends)
                appends = []
                waiting.result = waiting.op(connection)
            append_all(connection, appends)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as e:
        return _dim_error(e)
    return None


def _select_all(connection: sqlite3.Connection, asked: Sequence[_Asked]) -> None:
    for each in asked:
        try:
            each.found = connection.execute(each.statement, each.values).fetchall()
        except sqlite3.Error as e:
            each.found = _dim_error(e)


def _digest(job: str, digest: int, finished: int, at: float, claim: bytes, final: int) -> JobDigest:
    owner = rows.ballot_of(claim).peer if claim and final != rows.DELETED else ""
    return JobDigest(job, digest.to_bytes(8, "big", signed=True), bool(finished), at, owner)


def _dim_error(e: sqlite3.Error) -> DimError:
    primary = getattr(e, "sqlite_errorcode", 0) & 0xFF
    if primary in _DAMAGED:
        return schema.damaged(e)
    if primary in _NO_ROOM:
        return ResourceExhausted(
            f"the journal cannot be written ({e})", hint="Free disk space, or make the node's home writable.", retry_after=5.0
        )
    return Unavailable(f"the journal is not available ({e})")


def _closed() -> DimError:
    return Unavailable("the journal is closed", hint="The node is stopping.")
