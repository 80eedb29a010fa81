"""A node that is new, or was away, catches up from the snapshots of the seats; what happens from then on it hears as everybody does.

First the states of all jobs are read, and the records of those that are here in another state, so that nothing that has ended
meanwhile is gone on with; then, in the background, what else this node shall hold or may be asked about. Every entry is let in as from any
other node (`dimnode.records.exchange`): checked, merged, and refused if the record is older than records are kept. So a snapshot, however
old or wrong, brings nothing back to life.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from dimnode.core.catching_up import Take, Taker, Told
from dimnode.core.job_record import Record
from dimnode.core.records_sync import heirs
from dimnode.core.snapshot_chunks import Fingerprint
from dimnode.domain.codec import CodecError
from dimnode.domain.record import SignedEntry
from dimnode.errors import DimError
from dimnode.ports import Clock, Elector, JobDigest, Journal, Registry
from dimnode.records.blocks import KeepBlocks, keep_whole
from dimnode.records.exchange import RecordExchange
from dimnode.records.messages import JobEntries
from dimnode.records.table import RecordTable
from dimnode.snapshots.name_book import Named
from dimnode.snapshots.names import SwarmNames
from dimnode.snapshots.reader import Published, open_published
from dimnode.snapshots.tree import Child
from dimnode.snapshots.writer import token
from p2p.api import NetworkError
from p2p.ipfs.api import ContentError, ContentStore
from p2p.ipfs.cid import Cid

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CatchUpSettings:
    replicas: int = 1
    """``jobs.replicas``"""
    copies_on: frozenset[str] = frozenset()
    eligible: bool = True
    """This node may hold a seat, and is then asked about any job."""
    most_bytes: int = 256 * 1024 * 1024
    """Of records that are taken though nobody needs them at once (``ipfs.catch_up_bytes``)."""
    timeout: float = 30.0
    """Seconds for a block."""
    retry: float = 2.0
    """Seconds until it is tried again when no seat could be read."""
    retry_most: float = 60.0
    watch: float = 30.0
    """Seconds between looks at whether this node was away."""
    late_seats: float = 30.0
    """Seconds after the first seats were read in which others that show are read, too: each publishes what it has."""
    away: float = 120.0
    """Seconds of sleep (of the machine) after which a node catches up again."""
    batch: int = 64
    """Records let in together."""
    batch_bytes: int = 4 * 1024 * 1024
    duty: float = 0.5
    """Share of the time for what is not urgent."""
    leaves_kept: int = 16_384
    """Leaves to be read later that are remembered; more are left to anti-entropy."""
    tries: int = 10
    """Passes in which the blocks of a record are sought; after that nobody seems to have them."""
    lacking: int = 4_096
    """Records whose blocks are sought at the same time."""


class CatchUp:
    """``keep_blocks`` fetches blocks and pins them for a job."""

    def __init__(
        self,
        store: ContentStore,
        journal: Journal,
        table: RecordTable,
        exchange: RecordExchange,
        names: SwarmNames,
        registry: Registry,
        elector: Elector,
        clock: Clock,
        settings: CatchUpSettings | None = None,
        *,
        me: str,
        swarm: str,
        keep_blocks: KeepBlocks,
    ) -> None:
        self._store = store
        self._journal = journal
        self._table = table
        self._exchange = exchange
        self._names = names
        self._registry = registry
        self._elector = elector
        self._clock = clock
        self._settings = settings or CatchUpSettings()
        self._me = me
        self._swarm = swarm
        self._keep_blocks = keep_blocks
        self._counts: Counter[str] = Counter()
        self._taken_bytes = 0
        self._lacking: dict[str, int] = {}
        """Jobs whose blocks could not be had -> in how many passes."""
        self._sought: set[str] = set()
        """In this pass."""
        self._seats: Sequence[str] = ()
        """That can be read in this pass."""
        self.informed = trio.Event()
        """Set when the states of all jobs were read once, and what is unfinished is here."""
        self.seconds = 0.0
        """That this took."""

    def statistics(self) -> Mapping[str, float]:
        """``passes``, ``complete`` ones, ``failed`` seats, leaves ``read`` and ``same``, jobs ``told`` of, records ``urgent`` and ``later`` taken, ``lacking``:
        records whose blocks could not be had yet; ``seconds``."""
        return {**self._counts, "lacking": len(self._lacking), "informed": int(self.informed.is_set()), "seconds": self.seconds}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled: once after the start, and again when this machine has slept."""
        task_status.started()
        while True:
            await self._read_late(await self._until_read())
            await self._until_away()

    async def _read_late(self, read: set[str]) -> None:
        """Who has just started hears of the seats one after the other. Only the waiting for them ends after a while, not the reading."""
        until = trio.current_time() + self._settings.late_seats
        waiting = trio.CancelScope()
        while not waiting.cancelled_caught:
            since = self._elector.changed()
            if late := [s.peer for s in self._elector.seats() if s.peer != self._me and s.peer not in read]:
                read.update(late)
                await self.catch_up(late)
            with trio.move_on_at(until) as waiting:
                await self._elector.wait_changed(since)

    async def _until_away(self) -> None:
        before = self._clock.monotonic()
        while True:
            await trio.sleep(self._settings.watch)
            now = self._clock.monotonic()
            if now - before > self._settings.watch + self._settings.away:
                return
            before = now

    async def _until_read(self) -> set[str]:
        """The seats that were read."""
        pause = self._settings.retry
        while True:
            seats = [s.peer for s in self._elector.seats() if s.peer != self._me]
            if not seats:
                await self._elector.wait_changed(self._elector.changed())
                continue
            if await self.catch_up(seats):
                return set(seats)
            await trio.sleep(pause)
            pause = min(2 * pause, self._settings.retry_most)

    async def catch_up(self, seats: Sequence[str]) -> bool:
        """One pass; whether every one of these seats could be read, and all blocks be had. What does not work is only logged."""
        self._counts["passes"] += 1
        began = trio.current_time()
        rest: list[tuple[Published, Child]] = []
        named = await self._names.resolve(seats)
        self._seats = [seat for seat in seats if seat in named]
        self._sought.clear()
        read = 0
        for seat in seats:
            if seat in named:
                read += await self._unless_it_fails(seat, self._urgent, named[seat], rest)
        if read and not self.informed.is_set():
            self.seconds = trio.current_time() - began
            self.informed.set()
            log.info("catch_up.informed", seats=read, seconds=round(self.seconds, 3), **self._counts)
        await self._seek()
        for published, leaf in rest:
            await self._unless_it_fails(published.peer, self._later, published, leaf)
        self._lacking = {job: tries for job, tries in self._lacking.items() if job in self._sought}
        self._counts["complete"] += bool(read)
        return read == len(seats) and not self._lacking

    async def _unless_it_fails(self, seat: str, act: Callable[..., Awaitable[None]], *args: Any) -> bool:
        try:
            await act(*args)
        except (ContentError, DimError, NetworkError, CodecError) as error:
            self._counts["failed"] += 1
            log.info("catch_up.failed", seat=seat, reason=str(error))
            return False
        return True

    async def _urgent(self, named: Named, rest: list[tuple[Published, Child]]) -> None:
        published = await open_published(self._store, named, self._swarm, self._settings.timeout)
        async with aclosing(published.leaves()) as leaves:
            async for leaf in leaves:
                if await self._same(leaf):
                    self._counts["same"] += 1
                    continue
                self._counts["read"] += 1
                chosen, file = await self._choose(published, leaf)
                self._counts["told"] += leaf.count
                urgent = {job: told for job, (told, take) in chosen.items() if take is Take.NOW}
                await self._take(published, file, urgent, "urgent")
                if file is not None and len(urgent) < len(chosen) and len(rest) < self._settings.leaves_kept:
                    rest.append((published, leaf))

    async def _later(self, published: Published, leaf: Child) -> None:
        if self._taken_bytes >= self._settings.most_bytes:
            return
        began = trio.current_time()
        chosen, file = await self._choose(published, leaf)
        await self._take(published, file, {job: told for job, (told, _) in chosen.items()}, "later")
        await trio.sleep((trio.current_time() - began) * (1 / self._settings.duty - 1))

    async def _same(self, leaf: Child) -> bool:
        """Whether this node's copies of the jobs in this leaf are the same, as their digests tell."""
        here = [*(await self._journal.digests_of((leaf.first,))).values(), *await self._journal.digests(leaf.first, leaf.count)]
        here = [d for d in here if d.job <= leaf.last]
        return len(here) == leaf.count and leaf.fingerprint in [fingerprint(here, with_records) for with_records in (True, False)]

    async def _choose(self, published: Published, leaf: Child) -> tuple[dict[str, tuple[Told, Take]], Cid | None]:
        """What of a leaf is to be taken."""
        summaries, file = await published.summaries(leaf)
        mine = await self._journal.digests_of([s.job for s in summaries])
        active, taker = frozenset(self._table.active), self._taker()
        chosen: dict[str, tuple[Told, Take]] = {}
        for s in summaries:
            told = Told(s.job, s.digest, s.finished, s.owner, s.blocks)
            take = taker.decide(told, mine[s.job].digest if s.job in mine else None, s.job in active)
            if take is not Take.NO:
                chosen[s.job] = (told, take)
        return chosen, file

    def _taker(self) -> Taker:
        s = self._settings
        there = [v.heartbeat for v in self._registry.alive() if not v.heartbeat.leaving]
        members = [h.peer_id for h in there if not s.copies_on or h.peer_id in s.copies_on]
        return Taker(self._me, s.eligible, members, frozenset(h.peer_id for h in there), s.replicas)

    async def _take(self, published: Published, file: Cid | None, wanted: Mapping[str, Told], kind: str) -> None:
        """Records out of a snapshot, or from the seat itself if it does not publish them."""
        if not wanted:
            return
        if file is None:
            entries = await self._exchange.fetch(published.peer, list(wanted)) if kind == "urgent" else {}
            await self._let_in(published, {job: e for job, e in entries.items() if job in wanted}, wanted, kind)
            return
        batch: dict[str, list[SignedEntry]] = {}
        size = 0
        async with aclosing(published.records(file, wanted)) as found:
            async for job, entries in found:
                batch[job] = entries
                size += sum(len(e.payload) for e in entries)
                if len(batch) >= self._settings.batch or size >= self._settings.batch_bytes:
                    await self._let_in(published, batch, wanted, kind)
                    batch, size = {}, 0
        await self._let_in(published, batch, wanted, kind)

    async def _let_in(
        self, published: Published, batch: Mapping[str, Sequence[SignedEntry]], wanted: Mapping[str, Told], kind: str
    ) -> None:
        if not batch:
            return
        told = [JobEntries(job=job, entries=tuple(entries)) for job, entries in batch.items()]
        sound = await self._exchange.sound(published.peer, told)
        taker = self._taker()
        held = {job for job, _ in sound if taker.keeps_blocks(wanted[job])}
        if kind == "later":  # once the record is here nothing tells that its blocks are not
            sound = [(job, entries) for job, entries in sound if job not in held or await self._blocks_first(Record(job, batch[job]))]
            self._taken_bytes += sum(len(e.payload) for job, _ in sound for e in batch[job])
        grew = await self._exchange.merge(sound)
        self._counts[kind] += sum(grew.values())
        if kind == "urgent":
            self._lacking.update(dict.fromkeys([job for job in held if grew.get(job)][: self._room()], 0))

    # --- blocks

    def _room(self) -> int:
        return max(0, self._settings.lacking - len(self._lacking))

    async def _blocks_first(self, record: Record) -> bool:
        """Whether the record may be taken: its blocks are here, or were sought so often that nobody seems to have them any more."""
        job = record.job
        if job not in self._lacking and not self._room():
            return False
        return await self._had(record)

    async def _seek(self) -> None:
        """Blocks of records that were needed at once, and are here."""
        for job in list(await self._journal.digests_of(list(self._lacking))):
            await self._had(Record(job, await self._journal.load(job)))

    async def _had(self, record: Record) -> bool:
        """Whether there is no more to be done about its blocks."""
        job = record.job
        self._sought.add(job)
        tries = self._lacking.pop(job, 0) + 1
        if await self._keep_whole(record):
            return True
        if tries < self._settings.tries:
            self._lacking[job] = tries
            return False
        log.warning("catch_up.blocks_not_had", job=job, tries=tries)
        self._counts["without_blocks"] += 1
        return True

    async def _keep_whole(self, record: Record) -> bool:
        """From whoever shall have the record, and from the seats."""
        taker = self._taker()
        holders = [*self._seats, *heirs(record.job, taker.members, taker.replicas)]
        providers = [p for p in dict.fromkeys(holders) if p != self._me]
        return await keep_whole(record, self._store, self._keep_blocks, providers, self._settings.timeout)


def fingerprint(digests: Sequence[JobDigest], with_records: bool) -> bytes:
    """Of a leaf of jobs, as `dimnode.snapshots.writer` makes it."""
    made = Fingerprint()
    for d in digests:
        made.add(d.job, token(d, with_records))
    return made.digest()
