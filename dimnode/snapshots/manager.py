"""The state manager: what the swarm has published of itself, written by seats, read by everybody. All parts, wired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from dimnode.core.record_gate import EntryRules
from dimnode.ports import Clock, Elector, Journal, Signer
from dimnode.records.blocks import KeepBlocks
from dimnode.records.exchange import ExchangeSettings, RecordExchange
from dimnode.records.table import RecordTable
from dimnode.snapshots.catch_up import CatchUp, CatchUpSettings
from dimnode.snapshots.names import NamesSettings, Outlet, SwarmNames
from dimnode.snapshots.publisher import Heartbeats, PublisherSettings, SnapshotPublisher
from dimnode.snapshots.resolver import Resolver, ResolverSettings
from dimnode.snapshots.writer import SnapshotWriter, WriterSettings
from p2p.api import Network
from p2p.dht.api import Dht
from p2p.identity import Identity
from p2p.ipfs.api import ContentStore


@dataclass(frozen=True, slots=True)
class StateSettings:
    names: NamesSettings = field(default_factory=NamesSettings)
    writer: WriterSettings = field(default_factory=WriterSettings)
    publisher: PublisherSettings = field(default_factory=PublisherSettings)
    resolver: ResolverSettings = field(default_factory=ResolverSettings)
    catch_up: CatchUpSettings = field(default_factory=CatchUpSettings)
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)


class StateManager:
    """``key``: what this node publishes under. ``outlet``: a Kubo daemon, where there is one."""

    def __init__(
        self,
        *,
        swarm: str,
        protocol: int,
        rules: EntryRules,
        network: Network,
        journal: Journal,
        table: RecordTable,
        store: ContentStore,
        registry: Heartbeats,
        elector: Elector,
        clock: Clock,
        signer: Signer,
        key: Identity,
        keep_blocks: KeepBlocks,
        settings: StateSettings | None = None,
        outlet: Outlet | None = None,
        dht: Dht | None = None,
    ) -> None:
        s = settings or StateSettings()
        self.names = SwarmNames(
            network, registry, journal, clock, s.names, swarm=swarm, signer=signer, key=key, verify=rules.verify, dht=dht
        )
        self.writer = SnapshotWriter(store, journal, clock, s.writer)
        self.publisher = SnapshotPublisher(self.writer, self.names, table, registry, elector, clock, s.publisher, outlet=outlet)
        self.resolver = Resolver(store, self.names, registry, elector, s.resolver, swarm=swarm, protocol=protocol, rules=rules)
        exchange = RecordExchange(network, table, clock, s.exchange, rules=rules)
        self.catch_up = CatchUp(
            store, journal, table, exchange, self.names, registry, elector, clock, s.catch_up,
            me=network.peer_id, swarm=swarm, keep_blocks=keep_blocks,
        )  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once there is an elector."""
        async with trio.open_nursery() as nursery:
            for part in (self.names.run, self.publisher.run, self.catch_up.run):
                await nursery.start(part)
            task_status.started()

    def status(self) -> Mapping[str, Any]:
        """What this node publishes, if it does, and what keeps it from doing so."""
        return self.publisher.statistics()

    def statistics(self) -> Mapping[str, Any]:
        return {"names": self.names.statistics(), "published": self.publisher.statistics(), "caught_up": self.catch_up.statistics()}
