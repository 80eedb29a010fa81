"""Keeps the content store within its bounds: says what is needed, and when it is time to remove the rest.

Needed are pins, the blocks of all records that this node keeps (unfinished ones, and finished ones until retention lets them go), and
the models that it tells others about. Cabinets are no blocks: their content never enters the store.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

import structlog
import trio

from dimnode.core.record_blocks import result_blocks
from dimnode.errors import DimError
from dimnode.ports import Clock, Journal
from dimnode.records.holder import PIN
from dimnode.records.needed import RecordNeeds, bodies_of
from dimnode.records.table import RecordTable
from p2p.ipfs.api import Collected, ContentError, ContentStore

log = structlog.get_logger(__name__)
MIB = 1 << 20
PASSING = frozenset({"tensor", "job input", "checkpoint"})
"""Reasons of pins that only bridge the time until a record names the block."""
_HELPS = 0.02
"""Share of the blocks: a collection that takes less is not repeated soon."""


@dataclass(frozen=True, slots=True)
class GarbageSettings:
    max_bytes: int = 0
    """The store's bound (``ipfs.max_bytes``); 0: the disk's."""
    high: float = 0.9
    """Share of the bound at which a collection begins."""
    low: float = 0.75
    """And down to which it goes, if so much is garbage."""
    disk_free: int = 512 * MIB
    """Bytes free on the disk below which a collection takes all garbage."""
    interval: float = 5.0
    """Seconds between two looks."""
    pause: float = 5.0
    """Least seconds until the next collection after one that did not help."""
    share: float = 0.1
    """Of all time, at most spent on collections that do not help."""
    clock_skew: float = 3_600.0
    """Seconds that a record's time may differ from this node's clock."""


def wanted(settings: GarbageSettings, held: int, disk_free: int) -> int | None:
    """Bytes of blocks that should be left, or None if there is no need for a collection."""
    if disk_free < settings.disk_free:
        return 0
    if settings.max_bytes and held > settings.high * settings.max_bytes:
        return int(settings.low * settings.max_bytes)
    return None


class Garbage:
    """``models``: CIDs that the daemon needs; ``disk_free``: bytes left on the disk of the blocks."""

    def __init__(
        self,
        store: ContentStore,
        table: RecordTable,
        journal: Journal,
        models: Callable[[], Collection[str]],
        disk_free: Callable[[], int],
        clock: Clock,
        settings: GarbageSettings | None = None,
    ) -> None:
        self._store = store
        self._table = table
        self._journal = journal
        self._models = models
        self._disk_free = disk_free
        self._clock = clock
        self._settings = settings or GarbageSettings()
        self._lock = trio.Lock()
        self._ended = float("-inf")
        self._took = 0.0
        self._helped = self._freed = True
        self._runs = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._settings.interval)
            target = wanted(self._settings, self._store.statistics().bytes, self._disk_free())
            if target is not None and self._worth_it():
                await self._try(target)

    async def make_room(self) -> bool:
        """A write found the store full: whether anything was removed since. For `p2p.ipfs.store.Store.make_room`."""
        before = self._runs
        async with self._lock:
            if self._runs > before:
                return self._freed
            return self._worth_it() and await self._run(self._target())

    async def collect(self) -> Collected:
        """Everything that nobody needs, now. Raises `ContentError`, `DimError`."""
        async with self._lock:
            return await self._collect(0)

    def _target(self) -> int:
        low = int(self._settings.low * self._settings.max_bytes)
        return low if self._store.statistics().bytes > low else 0

    def _worth_it(self) -> bool:
        pause = max(self._settings.pause, self._took / self._settings.share)
        return self._helped or trio.current_time() - self._ended > pause

    async def _try(self, target: int) -> None:
        async with self._lock:
            await self._run(target)

    async def _run(self, target: int) -> bool:
        try:
            done = await self._collect(target)
        except (DimError, ContentError, OSError) as e:
            log.warning("garbage.failed", reason=str(e))
            self._note(0, 0)
            return False
        return done.bytes > 0

    async def _collect(self, target: int) -> Collected:
        named: set[str] = set()
        started = trio.current_time()
        held = self._store.statistics().bytes
        needs = RecordNeeds(self._table, self._journal, self._store)
        began = self._clock.wall()
        async with aclosing(self._needed(needs, named)) as needed:
            done = await self._store.collect(needed, down_to=target)
        if needs.complete:
            await self._release(named, began)
        self._took = trio.current_time() - started
        self._note(done.bytes, held)
        log.info("garbage.collected", blocks=done.blocks, bytes=done.bytes, needed=done.needed, recent=done.recent)
        return done

    def _note(self, freed: int, held: int) -> None:
        self._freed = freed > 0
        self._helped = self._freed and freed >= _HELPS * held
        self._ended = trio.current_time()
        self._runs += 1

    async def _needed(self, needs: RecordNeeds, named: set[str]) -> AsyncGenerator[str, None]:
        for cid in self._models():
            yield cid
        async with aclosing(needs.walk()) as walk:
            async for cid in walk:
                if cid not in named:
                    named.add(cid)
                    yield cid

    async def _release(self, named: Collection[str], now: float) -> None:
        """Passing pins that no record names, older than every unfinished job of this node: whoever made them has ended or
        was refused; and pins for jobs whose records are here and do not name the block any more. The next collection removes the blocks."""
        cores = [v.core for v in self._table.active_views() if v.core is not None]
        before = min([now, *(core.submitted for core in cores)]) - self._settings.clock_skew
        pins = {cid: pin for cid, pin in (await self._store.list_pins()).items() if cid not in named}
        jobs = {p.reason.removeprefix(PIN) for p in pins.values() if p.reason.startswith(PIN) and p.at < now - self._settings.clock_skew}
        told = {PIN + job for job in jobs if await self._all_named(job)}
        for cid, pin in pins.items():
            if (pin.reason in PASSING and pin.at < before) or (pin.reason in told and pin.at < now - self._settings.clock_skew):
                await self._store.unpin(cid)

    async def _all_named(self, job: str) -> bool:
        """Whether the record is here, and a result document that is a block of its own too: what they do not name the job does not need."""
        entries = await self._journal.load(job)
        return bool(entries) and all([await self._store.has(cid) for cid in result_blocks(bodies_of(entries))])
