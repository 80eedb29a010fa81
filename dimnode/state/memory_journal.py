"""The journal's in-memory twin, with a disk that takes its time and forgets what was not synced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from dimnode.clock import TrioClock
from dimnode.core.job_record import RANK, Record
from dimnode.domain.record import Ballot, Claim, Core, OutcomeEntry, SignedEntry
from dimnode.errors import DimError, ResourceExhausted, Unavailable
from dimnode.ports import JobDigest
from dimnode.state import rows

T = TypeVar("T")


@dataclass(slots=True)
class MemoryDisk:
    """What survives a crash."""

    records: dict[str, Record] = field(default_factory=dict[str, Record])
    """In order of arrival."""
    cores: dict[str, None] = field(default_factory=dict[str, None])
    at: dict[str, float] = field(default_factory=dict[str, float])
    meta: dict[str, bytes] = field(default_factory=dict[str, bytes])
    ballots: dict[str, Ballot] = field(default_factory=dict[str, Ballot])
    full: bool = False


@dataclass(eq=False, slots=True)
class _Write:
    due: float
    op: Callable[[], Any]
    done: bool = False
    result: Any = None
    error: DimError | None = None


class MemoryJournal:
    """`dimnode.ports.Journal`. ``sync`` is how long the disk takes to make a write durable, in seconds: it may be changed at
    any time. Writes become durable in the order of the calls; one whose caller was cancelled does so with the next call."""

    def __init__(self, disk: MemoryDisk | None = None, sync: float = 0.0, wall: Callable[[], float] | None = None) -> None:
        self.disk = disk or MemoryDisk()
        self.sync = sync
        self._wall = wall or TrioClock().wall
        self._line: deque[_Write] = deque()
        self._latest = float("-inf")
        self._gone = False

    def crash(self) -> MemoryJournal:
        """The journal after a power cut: writes that were not acknowledged are lost, this object is dead."""
        self._gone = True
        return MemoryJournal(self.disk, self.sync, self._wall)

    async def append(
        self, entries: Sequence[SignedEntry], *, under: Mapping[str, Ballot] | None = None, fresh: Collection[str] = ()
    ) -> dict[str, Ballot]:
        by_job: dict[str, list[rows.Row]] = {job: [] for job in under or ()}
        for entry in entries:
            r = rows.row(entry)
            by_job.setdefault(r.job, []).append(r)
        at = self._wall()
        return await self._write(lambda: self._append(by_job, under or {}, fresh, at))

    def _append(
        self, by_job: Mapping[str, list[rows.Row]], under: Mapping[str, Ballot], fresh: Collection[str], at: float
    ) -> dict[str, Ballot]:
        fenced: dict[str, Ballot] = {}
        for job, found in by_job.items():
            if job in under and rows.fences(highest := self.disk.ballots.get(job), under[job], fresh=job in fresh):
                assert highest is not None
                fenced[job] = highest
            else:
                self._insert(job, found, at)
        return fenced

    def _insert(self, job: str, found: Sequence[rows.Row], at: float) -> None:
        record = self.disk.records.get(job) or Record(job)
        before = record.version
        for r in found:
            record.add(r.entry)
            if r.claim is not None:
                self._raise(job, r.claim)
        if record.version != before:
            self.disk.records[job] = record
            self.disk.at[job] = at
        if _rank(record) == rows.DELETED:
            self.disk.cores.pop(job, None)
        elif any(r.kind == "core" for r in found):
            self.disk.cores.setdefault(job)

    async def load(self, job: str) -> tuple[SignedEntry, ...]:
        await self._read()
        record = self.disk.records.get(job)
        return record.entries() if record is not None else ()

    async def load_many(self, jobs: Sequence[str]) -> dict[str, tuple[SignedEntry, ...]]:
        await self._read()
        return {job: record.entries() for job in jobs if (record := self.disk.records.get(job)) is not None}

    async def discard(self, job: str, ids: Sequence[str]) -> None:
        await self._write(lambda: self._discard(job, ids))

    def _discard(self, job: str, ids: Sequence[str]) -> None:
        if (record := self.disk.records.get(job)) is None:
            return
        left = Record(job, [e for e in record.entries() if e.id not in ids])
        if len(left):
            self.disk.records[job] = left
        else:
            del self.disk.records[job], self.disk.at[job]
        if not any(isinstance(body, Core) for _, body in left.items()):
            self.disk.cores.pop(job, None)

    async def unfinished(self) -> tuple[str, ...]:
        await self._read()
        return tuple(job for job in self.disk.cores if not _finished(self.disk.records[job]))

    async def recent(self, limit: int) -> tuple[str, ...]:
        await self._read()
        return tuple([job for job in self.disk.records if job in self.disk.cores][::-1][:limit])

    async def digests(self, after: str, limit: int, *, parts: bool = False) -> tuple[JobDigest, ...]:
        await self._read()
        found = [job for job in self.disk.records if job > after and parts != self._whole(job)]
        return tuple(self._digest(job) for job in sorted(found)[:limit])

    async def digests_of(self, jobs: Sequence[str]) -> dict[str, JobDigest]:
        await self._read()
        return {job: self._digest(job) for job in jobs if job in self.disk.records and self._whole(job)}

    def _whole(self, job: str) -> bool:
        return job in self.disk.cores or _rank(self.disk.records[job]) == rows.DELETED

    def _digest(self, job: str) -> JobDigest:
        record = self.disk.records[job]
        claim = rows.best_key(body.ballot for _, body in record.items() if isinstance(body, Claim))
        return JobDigest(job, record.digest, _finished(record), self.disk.at[job], rows.ballot_of(claim).peer if claim else "")

    async def forget(self, jobs: Sequence[str]) -> None:
        await self._write(lambda: self._forget(jobs))

    def _forget(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            for where in (self.disk.records, self.disk.cores, self.disk.at, self.disk.ballots):
                where.pop(job, None)

    async def get(self, key: str) -> bytes | None:
        await self._read()
        return self.disk.meta.get(key)

    async def put(self, key: str, value: bytes) -> None:
        await self._write(lambda: self.disk.meta.__setitem__(key, value))

    async def raise_ballot(self, job: str, ballot: Ballot) -> Ballot:
        return await self._write(lambda: self._raise(job, ballot))

    def _raise(self, job: str, ballot: Ballot) -> Ballot:
        self.disk.ballots[job] = max(ballot, self.disk.ballots.get(job, ballot))
        return self.disk.ballots[job]

    async def aclose(self) -> None:
        self._sync_due(float("inf"))
        self._gone = True
        await trio.lowlevel.checkpoint()

    # --- the disk

    async def _write(self, op: Callable[[], T]) -> T:
        """A write is there as a whole or not at all."""
        self._alive()
        self._latest = max(self._latest, trio.current_time() + self.sync)
        write = _Write(self._latest, op)
        self._line.append(write)
        await trio.sleep_until(write.due)
        if not write.done:
            self._alive()
            self._sync_due(write.due)
        if write.error is not None:
            raise write.error
        return write.result

    def _sync_due(self, now: float) -> None:
        """All that is due, in order: what is later may not be there without what came before."""
        while self._line and self._line[0].due <= now:
            write = self._line.popleft()
            write.done = True
            if self.disk.full:
                write.error = ResourceExhausted("the journal cannot be written (disk is full)", hint="Free disk space.", retry_after=5.0)
            else:
                write.result = write.op()

    async def _read(self) -> None:
        self._alive()
        await trio.lowlevel.checkpoint()
        self._alive()
        self._sync_due(trio.current_time())

    def _alive(self) -> None:
        if self._gone:
            raise Unavailable("the journal is closed", hint="The node is stopping.")


def _rank(record: Record) -> int:
    return max((RANK[b.status] for _, b in record.items() if isinstance(b, OutcomeEntry)), default=0)


def _finished(record: Record) -> bool:
    """As the tables tell it (`dimnode.state.schema`)."""
    found = [rows.row(entry) for entry in record.entries()]
    ended = rows.best_key(r.ended for r in found)
    return any(r.final for r in found) or b"" < ended >= rows.best_key(r.claim for r in found)
