"""Finished attempts: those that are remembered, and those that wait for somebody to take them."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from dimnode.daemon.execution import Key, key_of
from dimnode.domain.record import Attempt, SignedEntry
from dimnode.ports import Journal


class Finished:
    """Attempts of this node that have ended: the latest in memory, all in the journal."""

    def __init__(self, journal: Journal, peer_id: str, remember: int) -> None:
        """``remember``: attempts, and jobs, that are answered from memory."""
        self._journal, self._peer_id, self._remember = journal, peer_id, remember
        self._memory: dict[Key, SignedEntry] = {}
        self._complete: dict[str, None] = {}
        """Jobs all of whose attempts are in memory."""
        self._looking: dict[str, trio.Event] = {}
        """Jobs that are being looked up: the tasks of a new job come together."""

    def add(self, key: Key, entry: SignedEntry) -> None:
        self._memory[key] = entry
        while len(self._memory) > self._remember:
            old = next(iter(self._memory))
            del self._memory[old]
            # its job is looked up in the journal again
            self._complete.pop(old[0], None)

    async def find(self, key: Key) -> SignedEntry | None:
        job = key[0]
        while (other := self._looking.get(job)) is not None:
            await other.wait()
        if key in self._memory or job in self._complete:
            return self._memory.get(key)
        done = self._looking[job] = trio.Event()
        try:
            stored = await self._load(job)
        finally:
            del self._looking[job]
            done.set()
        for k, entry in stored.items():
            self.add(k, entry)
        if all(k in self._memory for k in stored):
            self._complete[job] = None
            while len(self._complete) > self._remember:
                del self._complete[next(iter(self._complete))]
        return stored.get(key) or self._memory.get(key)

    async def of_job(self, job: str) -> tuple[SignedEntry, ...]:
        """All of one job, in no order."""
        found = await self._load(job)
        found |= {k: e for k, e in self._memory.items() if k[0] == job}
        return tuple(found.values())

    async def _load(self, job: str) -> dict[Key, SignedEntry]:
        found: dict[Key, SignedEntry] = {}
        for entry in await self._journal.load(job):
            body = entry.body()
            if entry.author == self._peer_id and isinstance(body, Attempt):
                found[key_of(body)] = entry
        return found


class Outbox:
    """Attempts that nobody has received to the end, with their rows in the ledger; bounded, the oldest go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: dict[str, tuple[SignedEntry, int]] = {}
        self._version = 0
        self._more = trio.Event()

    def __len__(self) -> int:
        return len(self._kept)

    def entries(self) -> tuple[SignedEntry, ...]:
        return tuple(entry for entry, _ in self._kept.values())

    def keep(self, entry: SignedEntry, row: int) -> list[int]:
        """Rows that are free now: of attempts that had to go."""
        before = self._kept.pop(entry.id, None)
        self._kept[entry.id] = (entry, row)
        freed = [before[1]] if before is not None else []
        while len(self._kept) > self._capacity:
            freed.append(self._kept.pop(next(iter(self._kept)))[1])
        self._version += 1
        self._more.set()
        self._more = trio.Event()
        return freed

    def take(self, ids: Iterable[str]) -> list[int]:
        """Rows that are free now."""
        return [found[1] for found in (self._kept.pop(i, None) for i in ids) if found is not None]

    async def wait(self, since: int) -> int:
        await trio.lowlevel.checkpoint()
        while self._version <= since:
            await self._more.wait()
        return self._version
