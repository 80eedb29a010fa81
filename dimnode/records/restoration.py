"""After a node is gone: brings its records, and this node's own, of which it may have had the copies, to those that shall have them now.
What and when: `dimnode.core.restoring`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.restoring import Restoring, RestoringRule
from dimnode.errors import DimError
from dimnode.ports import Clock, Journal, Registry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RestorationSettings:
    interval: float = 2.0
    """Seconds between two pages."""
    page: int = 256
    """Records in one."""
    heirs_at_once: int = 4
    """That are given something at the same time: one that is slow is in nobody's way."""
    rule: RestoringRule = field(default_factory=RestoringRule)


class Restoration:
    """``heirs`` tells who shall hold jobs' records (job -> owner), ``bring`` compares records with a peer, which gets what it lacks with its blocks, and
    returns those that it did not get."""

    def __init__(
        self,
        me: str,
        journal: Journal,
        registry: Registry,
        clock: Clock,
        settings: RestorationSettings | None = None,
        *,
        heirs: Callable[[Mapping[str, str]], Awaitable[Mapping[str, Collection[str]]]],
        bring: Callable[[str, Sequence[str]], Awaitable[Collection[str]]],
    ) -> None:
        self._me = me
        self._journal = journal
        self._registry = registry
        self._clock = clock
        self._settings = s = settings or RestorationSettings()
        self._heirs = heirs
        self._bring = bring
        self._restoring = Restoring(s.rule, clock.monotonic())
        self._busy: set[str] = set()
        """Heirs that are being given something."""
        self._counts: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._settings.interval)
                states = {v.heartbeat.peer_id: v.state for v in self._registry.nodes()} | {self._me: "alive"}
                alive = [p for p, state in states.items() if state == "alive"]
                there = [p for p, state in states.items() if state in ("alive", "suspect")]
                self._restoring.observe(alive, there, self._clock.monotonic())
                try:
                    await self._look()
                except DimError as e:
                    log.warning("records.not_restored", reason=e.message)
                while len(self._busy) < self._settings.heirs_at_once and (heir := self._restoring.next(self._busy)) is not None:
                    self._busy.add(heir)
                    nursery.start_soon(self._give, heir)

    def statistics(self) -> Mapping[str, int]:
        """Records ``looked_at`` after nodes were gone, ``offered`` to heirs, and those that ``failed`` for now."""
        return dict(self._counts)

    async def _look(self) -> None:
        """One page of the journal, if there is one to look at. Raises what `Journal.digests` raises."""
        cursor = self._restoring.cursor
        if cursor is None or not self._restoring.room():
            return
        page = await self._journal.digests(cursor, self._settings.page)
        own = {d.job: d.owner for d in page if d.owner == self._me and d.finished}  # the others' copies are seen to all the time
        heirs = await self._heirs(own | {d.job: d.owner for d in page if d.owner and self._restoring.gone(d.owner)})
        self._counts["looked_at"] += len(page)
        others = {job: [p for p in peers if p != self._me] for job, peers in heirs.items()}
        self._restoring.turned([d.job for d in page], self._settings.page, others)

    async def _give(self, peer: str) -> None:
        """What it is owed now, until something does not work: then it has another turn with the next page."""
        try:
            lacking: set[str] = set()
            while not lacking and (jobs := self._restoring.take(peer)):
                began = trio.current_time()
                lacking = set(await self._bring(peer, list(jobs)))
                self._counts["offered"] += len(jobs)
                self._counts["failed"] += len(lacking)
                self._restoring.failed(peer, {job: left for job, left in jobs.items() if job in lacking})
                await trio.sleep(trio.current_time() - began)  # half of the time is for others
        finally:
            self._busy.discard(peer)
