"""Publishes the swarm's state while this node holds a seat: a snapshot now and then, and the node's name that points to it.

What cannot be written or published is tried again, later each time; the statistics say so. Of the time at most a share goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import structlog
import trio

from dimnode.errors import DimError
from dimnode.ports import Clock, Elector, Registry
from dimnode.records.table import RecordTable
from dimnode.snapshots.documents import Member
from dimnode.snapshots.members import Roster
from dimnode.snapshots.name_book import Named
from dimnode.snapshots.names import Outlet, SwarmNames
from dimnode.snapshots.writer import Made, SnapshotWriter
from dimnode.swarm.heartbeats import SignedHeartbeat
from p2p.ipfs.api import ContentError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    interval: float = 30.0
    """Least seconds between two snapshots (``ipfs.snapshot_interval``)."""
    settle: float = 2.0
    """Seconds from winning a seat to the first one."""
    share: float = 0.1
    """Of all time, at most spent on snapshots."""
    unchanged: int = 10
    """Intervals after which everything is looked at although nothing seems to have changed."""
    retry_first: float = 1.0
    retry_most: float = 60.0
    renew: float = 0.5
    """Share of a record's validity after which it is published again."""
    validity: float = 86_400.0
    ttl: float = 30.0


class Heartbeats(Registry, Protocol):
    def signed(self) -> Mapping[str, SignedHeartbeat]: ...


@dataclass(slots=True)
class PublisherState:
    """For status and statistics."""

    name: str = ""
    root: str = ""
    sequence: int = 0
    at: float = 0.0
    """Wall clock of the latest publication."""
    jobs: int = 0
    seconds: float = 0.0
    """That the latest snapshot took."""
    leaves: int = 0
    reused: int = 0
    snapshots: int = 0
    failures: int = 0
    """In a row."""
    problem: str = ""
    elsewhere: str = ""
    """The name in a Kubo daemon, if there is one."""
    backlog: int = 0
    """Publications that wait for another try."""


class SnapshotPublisher:
    """``outlet``: where the root is published besides."""

    def __init__(
        self,
        writer: SnapshotWriter,
        names: SwarmNames,
        table: RecordTable,
        registry: Heartbeats,
        elector: Elector,
        clock: Clock,
        settings: PublisherSettings | None = None,
        *,
        outlet: Outlet | None = None,
    ) -> None:
        self._writer = writer
        self._names = names
        self._table = table
        self._registry = registry
        self._elector = elector
        self._clock = clock
        self._settings = settings or PublisherSettings()
        self._outlet = outlet
        self._roster = Roster()
        self._named: Named | None = None
        self._given: tuple[str, int] | None = None
        """What the outlet has, and its generation then."""
        self.state = PublisherState(name=names.name)

    def statistics(self) -> Mapping[str, Any]:
        return asdict(self.state)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        await self._patiently(self._writer.open)
        while True:
            seat = await self._elector.wait_seat()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._while_seated)
                await self._elector.wait_lost(seat)
                nursery.cancel_scope.cancel()

    async def _while_seated(self) -> None:
        s = self._settings
        await trio.sleep(s.settle)
        seen: tuple[int, Mapping[str, Member], int] = (-1, {}, 0)
        quiet = 0
        while True:
            now = (self._table.version, self._members(), self._generation())
            quiet += 1
            took = 0.0
            if now != seen or quiet >= s.unchanged or self._due():
                seen, quiet = now, 0
                began = trio.current_time()
                await self._patiently(self.publish)
                took = trio.current_time() - began
            await trio.sleep(max(s.interval, took / s.share))

    async def publish(self) -> None:
        """A snapshot now, if anything has changed. Raises `ContentError`, `DimError`."""
        began = trio.current_time()
        made = await self._writer.write(await self._names.card(), self._members())
        self.state.snapshots += 1
        self._note(made, trio.current_time() - began)
        if self._named is None or self._named.cid != made.cid or self._due():
            self._named, self._given = await self._names.publish(made.cid), None
            self.state.sequence, self.state.at = self._named.record.sequence, self._clock.wall()
            log.info("snapshot.published", root=made.cid, jobs=made.root.job_count, leaves=made.leaves, reused=made.reused)
        await self._elsewhere(made.cid)

    def _members(self) -> Mapping[str, Member]:
        return self._roster.update(self._registry.nodes(), self._registry.signed(), self._clock.wall())

    async def _elsewhere(self, cid: str) -> None:
        wanted = cid, self._generation()
        if self._outlet is not None and self._given != wanted:
            self.state.elsewhere = await self._outlet.publish(cid, self._settings.validity, self._settings.ttl)
            self._given = wanted

    def _generation(self) -> int:
        return self._outlet.generation() if self._outlet is not None else 0

    def _due(self) -> bool:
        """The name's record is to be made anew, or it ends one day."""
        s = self._settings
        return self._named is not None and self._named.record.expires - self._clock.wall() < (1 - s.renew) * s.validity

    def _note(self, made: Made, seconds: float) -> None:
        self.state.root, self.state.jobs, self.state.seconds = made.cid, made.root.job_count, seconds
        self.state.leaves, self.state.reused = made.leaves, made.reused

    async def _patiently(self, act: Callable[[], Any]) -> None:
        """Until it works: with a full disk, or a store that is away, there is nothing else to do."""
        s = self._settings
        pause = s.retry_first
        while True:
            try:
                await act()
                self.state.problem, self.state.failures, self.state.backlog = "", 0, 0
                return
            except (ContentError, DimError) as error:
                self.state.problem, self.state.backlog = str(error), 1
                self.state.failures += 1
                log.warning("snapshot.failed", reason=str(error), again_in=pause)
            await trio.sleep(pause)
            pause = min(2 * pause, s.retry_most)
