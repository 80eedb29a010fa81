"""Brings the records of nodes that are gone to those that shall have them now. What and when: `dimnode.core.restoring`."""

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
    rule: RestoringRule = field(default_factory=RestoringRule)


class Restoration:
    """``heirs`` tells who shall hold a job's record, ``bring`` compares records with a peer, which gets what it lacks, and says
    whether that worked."""

    def __init__(
        self,
        me: str,
        journal: Journal,
        registry: Registry,
        clock: Clock,
        settings: RestorationSettings | None = None,
        *,
        heirs: Callable[[str], Collection[str]],
        bring: Callable[[str, Sequence[str]], Awaitable[bool]],
    ) -> None:
        self._me = me
        self._journal = journal
        self._registry = registry
        self._clock = clock
        self._settings = s = settings or RestorationSettings()
        self._heirs = heirs
        self._bring = bring
        self._restoring = Restoring(s.rule, clock.monotonic())
        self._counts: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._settings.interval)
            there = {v.heartbeat.peer_id for v in self._registry.nodes() if v.state in ("alive", "suspect")}
            self._restoring.observe(there | {self._me}, self._clock.monotonic())
            try:
                await self._look()
            except DimError as e:
                log.warning("records.not_restored", reason=e.message)
            await self._hand_out()

    def statistics(self) -> Mapping[str, int]:
        """Records ``looked_at`` after nodes were gone, and ``offered`` to heirs; requests that ``failed``."""
        return dict(self._counts)

    async def _look(self) -> None:
        """One page of the journal, if there is one to look at. Raises what `Journal.digests` raises."""
        cursor = self._restoring.cursor
        if cursor is None or not self._restoring.room():
            return
        page = await self._journal.digests(cursor, self._settings.page)
        self._counts["looked_at"] += len(page)
        self._restoring.turned({d.job: d.owner for d in page}, self._settings.page, self._heirs, self._me)

    async def _hand_out(self) -> None:
        """To each heir what it is owed, once."""
        met: dict[str, Mapping[str, int]] = {}
        while (due := self._restoring.next()) is not None:
            peer, jobs = due
            self._counts["offered"] += len(jobs)
            if not await self._bring(peer, list(jobs)):
                met[peer] = jobs
        for peer, jobs in met.items():
            self._counts["failed"] += 1
            self._restoring.failed(peer, jobs)
