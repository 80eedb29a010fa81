"""The journal's in-memory twin, with a disk that takes its time and forgets what was not synced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import ResourceExhausted, Unavailable
from dimnode.state import schema


@dataclass(slots=True)
class MemoryDisk:
    """What survives a crash."""

    entries: dict[str, dict[str, SignedEntry]] = field(default_factory=dict[str, dict[str, SignedEntry]])
    """By job, by entry id; in order of arrival."""
    cores: dict[str, None] = field(default_factory=dict[str, None])
    finished: set[str] = field(default_factory=set[str])
    meta: dict[str, bytes] = field(default_factory=dict[str, bytes])
    ballots: dict[str, Ballot] = field(default_factory=dict[str, Ballot])
    full: bool = False


class MemoryJournal:
    """`dimnode.ports.Journal`; ``sync`` is how long the disk takes to make a write durable, in seconds."""

    def __init__(self, disk: MemoryDisk | None = None, sync: float = 0.0) -> None:
        self.disk = disk or MemoryDisk()
        self._sync = sync
        self._gone = False

    def crash(self) -> MemoryJournal:
        """The journal after a power cut: writes that were not acknowledged are lost, this object is dead."""
        self._gone = True
        return MemoryJournal(self.disk, self._sync)

    async def append(self, entries: Sequence[SignedEntry]) -> None:
        rows = [schema.row(e) for e in entries]
        await self._synced()
        for r in rows:
            self.disk.entries.setdefault(r.job, {}).setdefault(r.id, r.entry)
            if r.kind == "core":
                self.disk.cores.setdefault(r.job)
            elif r.kind == "outcome":
                self.disk.finished.add(r.job)

    async def load(self, job: str) -> tuple[SignedEntry, ...]:
        await self._read()
        return tuple(self.disk.entries.get(job, {}).values())

    async def load_many(self, jobs: Sequence[str]) -> dict[str, tuple[SignedEntry, ...]]:
        await self._read()
        return {job: tuple(self.disk.entries[job].values()) for job in jobs if self.disk.entries.get(job)}

    async def discard(self, job: str, ids: Sequence[str]) -> None:
        await self._synced()
        for i in ids:
            self.disk.entries.get(job, {}).pop(i, None)

    async def unfinished(self) -> tuple[str, ...]:
        await self._read()
        return tuple(job for job in self.disk.cores if job not in self.disk.finished)

    async def recent(self, limit: int) -> tuple[str, ...]:
        await self._read()
        return tuple([job for job in self.disk.entries if job in self.disk.cores][::-1][:limit])

    async def get(self, key: str) -> bytes | None:
        await self._read()
        return self.disk.meta.get(key)

    async def put(self, key: str, value: bytes) -> None:
        await self._synced()
        self.disk.meta[key] = value

    async def raise_ballot(self, job: str, ballot: Ballot) -> Ballot:
        await self._synced()
        self.disk.ballots[job] = max(ballot, self.disk.ballots.get(job, ballot))
        return self.disk.ballots[job]

    async def aclose(self) -> None:
        self._gone = True
        await trio.lowlevel.checkpoint()

    async def _synced(self) -> None:
        """What follows happens at once: a write is there as a whole or not at all."""
        await self._read()
        await trio.sleep(self._sync)
        self._alive()
        if self.disk.full:
            raise ResourceExhausted("the journal cannot be written (disk is full)", hint="Free disk space.", retry_after=5.0)

    async def _read(self) -> None:
        self._alive()
        await trio.lowlevel.checkpoint()

    def _alive(self) -> None:
        if self._gone:
            raise Unavailable("the journal is closed", hint="The node is stopping.")
