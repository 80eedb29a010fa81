"""A node of a simulation: the parts that `dimnode.node` wires, wired in the same way, on a simulated machine.

What is simulated: network, disk, clock, signatures, the models and the agents that run them, gRPC (clients and orchestrators
are called over the simulated wire). Everything between is what production runs.
"""

from __future__ import annotations

import contextvars
import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import trio

from dimnode.core.election import ElectionSettings
from dimnode.core.electorate import first
from dimnode.core.load_sharing import LoadSharing
from dimnode.core.membership import MembershipSettings
from dimnode.core.record_gate import EntryRules
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.tasks import Tasks
from dimnode.domain.node import Capabilities, Heartbeat, Load
from dimnode.leadership import Leadership, LeadershipSettings
from dimnode.orchestrator import Orchestrator, OrchestratorSettings, ask_over, build_orchestrator
from dimnode.orchestrator.any_seat import AnySeat
from dimnode.orchestrator.seat_questions import AskSettings
from dimnode.ports import Clock
from dimnode.records.keeping import Keeping, KeepingSettings
from dimnode.records.participation import Door
from dimnode.security.electorate import sign_electorate
from dimnode.swarm.elector import ElectorSettings, SwarmElector
from dimnode.swarm.electorate import Electorates
from dimnode.swarm.majority_elector import MajorityElector
from dimnode.swarm.models import SwarmModels
from dimnode.swarm.registry import RegistrySettings, SwarmRegistry
from p2p.memory import MemoryHub, address_of
from tests.support.entries import FakeSigner, fake_verify
from tests.support.simulated_daemon import SimulatedDaemonClient, TaskServer, Worker
from tests.support.simulated_disk import SimulatedDisk, SimulatedJournal, SimulatedStore
from tests.support.simulated_jobs import CATALOGUE
from tests.support.simulated_machine import MACHINE, DriftingClock, Machine, in_place

SWARM = "simulation"
OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """As production's, but for what would only cost time."""

    membership: MembershipSettings = field(default_factory=MembershipSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    election: ElectionSettings = field(default_factory=ElectionSettings)
    elector: ElectorSettings = field(default_factory=ElectorSettings)
    orchestrator: OrchestratorSettings = field(default_factory=OrchestratorSettings)
    ask: AskSettings = field(default_factory=AskSettings)
    keeping: KeepingSettings = field(default_factory=KeepingSettings)
    daemon: DaemonSettings = field(default_factory=lambda: DaemonSettings(slots=2, queue_capacity=100))
    run_seconds: tuple[float, float] = (0.05, 1.0)
    """Least and most seconds that a task runs."""
    run_failures: float = 0.02
    """Share of the runs in which the agent dies."""
    load_interval: float = 0.5


@dataclass(slots=True)
class Site:
    """What all nodes have in common."""

    hub: MemoryHub
    rng: random.Random
    settings: NodeSettings
    servers: dict[str, TaskServer] = field(default_factory=dict[str, TaskServer])
    """Of the nodes that are up."""
    voters: tuple[str, ...] = ()
    """The electorate of mode ``majority``."""
    ran: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """(job, task key) -> completed runs, of all nodes."""


class SimulatedLeadership(Leadership):
    """Without a port: `served` is what clients of this seat talk to."""

    served: AnySeat | None = None

    async def _serve(self, orchestrator: Orchestrator) -> None:
        self.orchestrator = orchestrator
        self.served = cast(AnySeat, self._api(orchestrator))
        self.address = self._elector.mine().peer if self._elector.mine() else ""  # type: ignore[union-attr]
        self._elector.advertise(self.address, False)
        try:
            await trio.sleep_forever()
        finally:
            self.served = None


class SimulatedNode:
    """One run of a node's process, from start to crash. Made and run in the context of its machine."""

    def __init__(self, site: Site, peer: str, disk: SimulatedDisk, clock: DriftingClock, boots: int, *, alone: bool) -> None:
        s = site.settings
        self.site = site
        self.peer = peer
        self.disk = disk
        self.clock: Clock = clock
        self.boot = f"{peer}.{boots}"
        self.signer = FakeSigner(peer)
        self.network = site.hub.network(peer)
        self.journal = SimulatedJournal(disk, clock.wall)
        door = Door()
        self.store = SimulatedStore(self.network, disk, door.may_serve)
        self.sharing = LoadSharing()
        worker = Worker(peer, random.Random(site.rng.random()), clock, self.store, s.daemon, s.run_seconds, s.run_failures, site.ran)
        self.tasks = Tasks(
            signer=self.signer, clock=clock, journal=self.journal, settings=s.daemon,
            work=worker.work, refusal=lambda order: None, on_change=self._load_changes,
        )  # fmt: skip
        self.registry = SwarmRegistry(
            self.network, self.signer, clock, self._heartbeat(boots), s.membership, s.registry, verify=fake_verify
        )
        self.lists = Electorates(self.network, self.journal, clock, swarm=SWARM, operator=OPERATOR, verify=fake_verify)
        by_majority = s.election.mode == "majority"
        self.elector = self._majority(s) if by_majority else self._available(s, alone)
        self.rules = rules = EntryRules(fake_verify, SWARM, s.election.allow)
        self.keeping = Keeping(
            rules=rules,
            network=self.network,
            journal=self.journal,
            signer=self.signer,
            registry=self.registry,
            elector=self.elector,
            store=self.store,
            clock=clock,
            tasks=self.tasks,
            driver=lambda: self.leadership.orchestrator,
            settings=s.keeping,
            rng=random.Random(site.rng.random()),
            voters=self.lists.voters if by_majority else tuple,
        )
        door.participation = self.keeping.participation
        self.records = self.keeping.table
        self.models = SwarmModels(self.registry, self.store)
        self.server = TaskServer(site.hub, self.network, self.tasks, self._authorized)
        self.client = SimulatedDaemonClient(site.hub, self.network, self.tasks, site.servers.get)
        self.leadership = SimulatedLeadership(
            self.network,
            self.elector,
            cast(Any, None),
            self._orchestrator,
            self._any_seat,
            cast(Any, None),
            lambda principal: None,
            LeadershipSettings(listen="", fallback=False, announce="", server=cast(Any, None), ask=s.ask),
        )
        self._load = trio.Event()
        self.ready = False

    @property
    def served(self) -> AnySeat | None:
        """What clients of this node are answered by while it holds a seat."""
        return self.leadership.served

    async def run(self) -> None:
        """Until it crashes, which nothing here notices."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tasks.run)
            nursery.start_soon(self._tell_load)
            self.site.servers[self.peer] = self.server
            await self.lists.open(sign_electorate(first(SWARM, self.site.voters, OPERATOR), FakeSigner(OPERATOR)))
            await nursery.start(self.registry.run)
            await nursery.start(self.keeping.run)
            await nursery.start(self.elector.run)
            nursery.start_soon(self.leadership.run)
            self.ready = True
            await trio.sleep_forever()

    def _available(self, s: NodeSettings, alone: bool) -> SwarmElector:
        start = "alone" if alone else "join"
        return SwarmElector(self.network, self.registry, self.journal, self.clock, s.election, s.elector, boot=self.boot, start=start)

    def _majority(self, s: NodeSettings) -> MajorityElector:
        rng = random.Random(self.site.rng.random())
        return MajorityElector(
            self.network, self.registry, self.journal, self.clock, self.lists, s.election, s.elector, boot=self.boot, rng=rng
        )

    def crashed(self) -> None:
        self.site.servers.pop(self.peer, None)
        self.server.crashed()

    def _heartbeat(self, boots: int) -> Heartbeat:
        return Heartbeat(
            peer_id=self.peer,
            name=f"node-{self.peer}",
            swarm=SWARM,
            protocol=1,
            boot=self.boot,
            incarnation=boots,
            seq=0,
            addresses=(address_of(self.peer),),
            daemon=":1",
            capabilities=Capabilities(os="linux", arch="simulated", cpus=4, memory=8 << 30, loaders=("onnx",)),
            load=self._now(),
            models=tuple(ref for ref, _, _ in CATALOGUE.values()),
        )

    def _now(self) -> Load:
        d = self.site.settings.daemon
        return Load(
            running=self.tasks.running, queued=self.tasks.waiting(), slots=d.slots, queue_capacity=d.queue_capacity, memory_free=4 << 30
        )

    def _load_changes(self) -> None:
        self._load.set()

    async def _tell_load(self) -> None:
        while True:
            await self._load.wait()
            self._load = trio.Event()
            self.registry.announce(load=self._now())
            await trio.sleep(self.site.settings.load_interval)

    def _authorized(self, peer: str) -> bool:
        return any(s.peer == peer for s in self.elector.seats())

    def _any_seat(self, orchestrator: Orchestrator) -> AnySeat:
        return AnySeat(
            orchestrator, self.records, self.network, self.elector, self.clock, self.site.settings.ask,
            sharing=self.sharing, hint=self.keeping.hints.owner_of, search=self.keeping.search,
        )  # fmt: skip

    def _orchestrator(self) -> Orchestrator:
        return build_orchestrator(
            swarm=SWARM,
            rules=self.rules,
            boot=self.boot,
            signer=self.signer,
            table=self.records,
            store=self.store,
            registry=self.registry,
            models=self.models,
            client=self.client,
            clock=self.clock,
            settings=self.site.settings.orchestrator,
            sync=self.keeping.sync,
            ask=ask_over(self.network, self.site.settings.orchestrator.inquiry_timeout),
            seats=lambda: frozenset((s.peer, s.boot) for s in self.elector.seats()),
            compute=in_place,
        )


class Computer:
    """A machine with a disk, on which a node is started, crashes and is started again."""

    def __init__(self, site: Site, peer: str, violated: Callable[[str], None]) -> None:
        self.site = site
        self.peer = peer
        self.disk = SimulatedDisk(random.Random(site.rng.random()))
        self.clock = DriftingClock(rate=site.rng.uniform(0.98, 1.02), start=site.rng.uniform(0, 1e6), wrong=site.rng.uniform(-3600, 3600))
        self.disk.blocks.update((ref.manifest_cid, data) for ref, _, data in CATALOGUE.values())
        self.boots = 0
        self.node: SimulatedNode | None = None
        self.machine = Machine(peer)
        self.paused = False
        self._dead: list[Machine] = []
        self._violated = violated

    def start(self, *, alone: bool = False) -> None:
        self.boots += 1
        self.machine = Machine(f"{self.peer}.{self.boots}")
        context = contextvars.copy_context()
        context.run(MACHINE.set, self.machine)
        self.node = context.run(lambda: SimulatedNode(self.site, self.peer, self.disk, self.clock, self.boots, alone=alone))
        assert self.site.hub.nursery is not None
        context.run(self.site.hub.nursery.start_soon, self._run, self.node)

    async def _run(self, node: SimulatedNode) -> None:
        try:
            await node.run()
        except Exception as e:  # noqa: BLE001 - nothing may end a node but its crash
            if self.node is not node:
                return  # what it says after its end
            self._violated(f"node {node.boot} ended by itself:\n{''.join(traceback.format_exception(e))}")

    def crash(self) -> None:
        """As a power cut. The node's tasks stay where they are, for ever."""
        assert self.node is not None
        node, self.node = self.node, None
        self.machine.freeze()
        self.machine.dead = True
        self._dead.append(self.machine)
        self.paused = False
        node.journal.lose_power()
        self.site.hub.crash(self.peer)
        node.crashed()

    def pause(self) -> None:
        self.paused = True
        self.site.hub.pause(self.peer)
        self.machine.freeze()

    def resume(self) -> None:
        self.paused = False
        self.machine.thaw()
        self.site.hub.resume(self.peer)

    def dismantle(self) -> None:
        """At the end of the simulation: what stands still has to be ended, too."""
        self.node = None
        for machine in (*self._dead, self.machine):
            machine.thaw()
