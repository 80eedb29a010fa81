"""All parts of the events, wired. What they do is beside the work: a failure here, or a listener that is slow, delays and ends nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any

import trio

from dimnode.core.event_flow import Numbers
from dimnode.domain import events
from dimnode.domain.events import KINDS
from dimnode.errors import FieldProblem, InvalidArgument
from dimnode.events.listener import EventListener
from dimnode.events.outlets import KuboOutlet, Pubsub, SwarmOutlet
from dimnode.events.publisher import Desk, Lane, Publisher
from dimnode.events.settings import EventSettings
from dimnode.events.sources import JobSource, NodeSource
from dimnode.ports import Clock, Elector, Registry, Signer
from dimnode.records.table import RecordTable
from dimnode.security import jws
from p2p.api import Network
from p2p.identity import verify as verify_with_peer_id


class EventManager:
    """``boot``: of the ballots that this node makes. ``pubsub``: of a Kubo daemon, where there is one to be used."""

    def __init__(
        self,
        *,
        network: Network,
        table: RecordTable,
        registry: Registry,
        elector: Elector,
        clock: Clock,
        signer: Signer,
        boot: str,
        settings: EventSettings,
        pubsub: Pubsub | None = None,
        verify: jws.Verify = verify_with_peer_id,
    ) -> None:
        self._settings = settings
        self.listener = EventListener(network, clock, settings, verify=verify)
        desk = Desk(signer, clock, Numbers(), settings.channel)
        lanes = {"swarm": Lane(SwarmOutlet(network), desk, settings, self.listener.hear)}
        if pubsub is not None:
            lanes["kubo"] = Lane(KuboOutlet(pubsub), desk, settings)
        self._publisher = Publisher(lanes)
        tell, me = self._publisher.tell, signer.peer_id
        self._jobs = JobSource(table, clock, tell, settings, me=me, boot=boot) if settings.jobs else None
        self._nodes = NodeSource(registry, elector, clock, tell, settings, me=me) if settings.nodes else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once there is an elector."""
        async with trio.open_nursery() as nursery:
            for part in (self.listener, self._publisher, self._jobs, self._nodes):
                if part is not None:
                    nursery.start_soon(part.run)
            task_status.started()

    def status(self) -> Mapping[str, Any]:
        """Topics, and for each way out how it goes; for ``dimnode status``."""
        topics = {kind: events.topic(self._settings.channel, kind) for kind in KINDS}
        return {"topics": topics, "jobs": self._settings.jobs, "nodes": self._settings.nodes, **self._publisher.status()}

    def statistics(self) -> Mapping[str, Any]:
        return {**self._publisher.status(), "missed_jobs": self._jobs.missed if self._jobs else 0, **self.listener.statistics()}

    def watch(self, kinds: Collection[str], *, follow: bool) -> AsyncGenerator[dict[str, Any], None]:
        """``kinds``: of ``jobs`` and ``nodes``; empty: both. Raises `InvalidArgument`, `ResourceExhausted`."""
        if unknown := [k for k in kinds if k not in KINDS]:
            raise InvalidArgument(f"there are no events of {unknown[0]!r}", fields=(FieldProblem("kinds", f"may be {', '.join(KINDS)}"),))
        return self.listener.watch(kinds or KINDS, follow=follow)
