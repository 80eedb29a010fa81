"""The composition root: builds every part, wires them, starts and stops them in order.

Start: journal, network, content store, gRPC bridge, daemon, registry, elector, the daemon's port, the
local sockets; then the orchestrator whenever a seat is held. Stop is the reverse, by nesting, after a
drain in which the seat is released and tasks are handed back.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

import structlog
import trio

from dimnode import PROTOCOL_VERSION, node_parts
from dimnode.clock import SystemClock
from dimnode.config import Config, require_served
from dimnode.core.election_types import Start
from dimnode.core.load_sharing import LoadSharing
from dimnode.core.rate_limit import RateLimiter
from dimnode.core.record_gate import EntryRules
from dimnode.daemon import gpus
from dimnode.daemon.service import Change, Daemon
from dimnode.domain.node import Heartbeat, Load
from dimnode.errors import FailedPrecondition, ResourceExhausted, Unavailable
from dimnode.events.manager import EventManager
from dimnode.garbage import Garbage
from dimnode.home import Control, Home
from dimnode.invite import Invite, Membership, make, settle
from dimnode.leadership import Leadership
from dimnode.leaving import leave
from dimnode.node_api import LocalNode
from dimnode.node_electorate import Electorate
from dimnode.orchestrator import Orchestrator, ask_over, build_orchestrator
from dimnode.orchestrator.any_seat import AnySeat
from dimnode.ports import Journal
from dimnode.providing import Providing
from dimnode.records.keeping import Keeping
from dimnode.records.participation import Door
from dimnode.rpc.bridge import Bridge, open_bridge
from dimnode.rpc.channels import open_pool, resolver
from dimnode.rpc.daemon_client import GrpcDaemonClient
from dimnode.rpc.daemon_server import NodeIdentity, serve_daemon
from dimnode.rpc.node_server import serve_node
from dimnode.rpc.server import RunningServer, require_usable
from dimnode.security.certificates import CertificateStore
from dimnode.settings import Settings
from dimnode.snapshots.manager import StateManager
from dimnode.state.journal import open_journal
from dimnode.store_desk import StoreDesk
from dimnode.swarm import acquaintances
from dimnode.swarm.elector import SwarmElector
from dimnode.swarm.electorate import Electorates
from dimnode.swarm.majority_elector import MajorityElector
from dimnode.swarm.models import SwarmModels
from dimnode.swarm.registry import SwarmRegistry
from dimnode.swarm.relay import Relay
from p2p.dht.dht import SwarmDht
from p2p.identity import Identity, verify
from p2p.ipfs.store import Store
from p2p.network import Libp2pNetwork

log = structlog.get_logger(__name__)
BOOT_COUNT = "boot.count"
_ANY_PORT = ":0"


async def run(config: Config, home: Home, *, join: Sequence[str] = (), announce: Callable[[str], None] = print) -> None:
    """Runs the node until SIGTERM, SIGINT or cancellation; then it drains for at most ``node.drain``
    seconds. ``announce`` gets one line when the node can be used. Raises `DimError` for what keeps it
    from starting, and `Unavailable` if records stayed behind that others should have."""
    require_served(config)
    with home.lock():
        if config.election.eligible and not config.is_default("orchestrator.listen"):
            # Bound when a seat is won, which may be much later: an operator should hear of it now.
            await trio.to_thread.run_sync(require_usable, "orchestrator.listen", config.orchestrator.listen)
        identity = await trio.to_thread.run_sync(node_parts.identity, home)
        swarm = config.swarm
        member = await trio.to_thread.run_sync(
            lambda: settle(home, swarm=swarm.name, key_file=swarm.key_file, bootstrap=swarm.bootstrap, join=join)
        )
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            stop = trio.Event()
            left_behind = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, stop, nursery.cancel_scope)
                async with AsyncExitStack() as stack:
                    node = await Node.open(stack, config, home, identity, member)
                    await node.serve(announce, stop)
                    left_behind = node.left_behind
                nursery.cancel_scope.cancel()
        if left_behind:
            raise Unavailable(
                f"{left_behind} job records could not be handed over before this node left",
                hint="They are safe in its home: start it again, or keep the disk, before you take the machine away.",
            )


async def _heed(signals: AsyncIterator[int], stop: trio.Event, everything: trio.CancelScope) -> None:
    """The first signal asks for a stop, also while the node still starts; a second one ends the drain. Both are heeded
    until the last part is closed: a signal in between must not end the process in the middle of it."""
    async for number in signals:
        log.info("node.stopping", signal=signal.Signals(number).name)
        if stop.is_set():
            everything.cancel()
        stop.set()


class Node:
    """Everything that one running node consists of."""

    def __init__(
        self,
        config: Config,
        home: Home,
        identity: Identity,
        member: Membership,
        journal: Journal,
        network: Libp2pNetwork,
        store: Store,
        bridge: Bridge,
        boots: int,
        met_before: acquaintances.Addresses,
        electorates: Electorates,
        cards: tuple[gpus.Gpu, ...],
        names_key: Identity,
        dht: SwarmDht | None,
    ) -> None:
        self.clock = SystemClock()
        self.config = config
        self.home = home
        self.member = member
        self.identity = identity
        self.journal = journal
        self.network = network
        self.store = store
        self.bridge = bridge
        self.settings = Settings(config)
        self.rules = EntryRules(verify, member.swarm, self.settings.deciders())
        self.boot = secrets.token_hex(8)
        self.name = config.node.name or f"{socket.gethostname()}-{identity.peer_id[-6:]}"
        self.started = self.clock.monotonic()
        self.sharing = LoadSharing()
        self.certificates = CertificateStore(network, self.clock.wall, self.settings.certificates())
        self.daemon = Daemon(
            signer=identity,
            clock=self.clock,
            journal=journal,
            store=store,
            folder=home.path,
            settings=self.settings.daemon(),
            price=config.cost.price,
            boot=self.boot,
            on_change=self._daemon_changed,
            cards=cards,
        )
        self.registry = SwarmRegistry(
            network, identity, self.clock, self._heartbeat(boots), self.settings.membership(), self.settings.registry()
        )
        self.electorates = electorates
        self.elector = self._elector("join" if member.bootstrap else "lan" if config.swarm.mdns or met_before else "alone")
        self.keeping = Keeping(
            rules=self.rules,
            network=network,
            journal=journal,
            signer=identity,
            registry=self.registry,
            elector=self.elector,
            store=store,
            clock=self.clock,
            tasks=self.daemon,
            driver=lambda: self._leadership.orchestrator if self._leadership else None,
            settings=self.settings.keeping(),
            free=self.daemon.disk_free,
            voters=self.electorates.voters if config.election.mode == "majority" else tuple,
        )
        self.garbage = Garbage(
            store, self.keeping.table, journal, self.daemon.needed_blocks, self.daemon.disk_free, self.clock, self.settings.garbage()
        )
        if store.backend == "embedded":  # a Kubo daemon has owners, and a bound, of its own
            store.make_room = self.garbage.make_room
        self.state = StateManager(
            swarm=member.swarm,
            protocol=PROTOCOL_VERSION,
            rules=self.rules,
            network=network,
            journal=journal,
            table=self.keeping.table,
            store=store,
            registry=self.registry,
            elector=self.elector,
            clock=self.clock,
            signer=identity,
            key=names_key,
            keep_blocks=self.keeping.keep_blocks,
            settings=self.settings.state(),
            outlet=node_parts.outlet(store, member.swarm),
            dht=dht,
        )
        self.events = EventManager(
            network=network, table=self.keeping.table, registry=self.registry, elector=self.elector, clock=self.clock, signer=identity,
            boot=self.boot, settings=self.settings.events(member.key), pubsub=node_parts.pubsub(config, store),
        )  # fmt: skip
        self.dht = dht
        self.providing = Providing(dht, store, self.daemon.needed_blocks, self._met, self.settings.providing()) if dht else None
        self.daemon.more_stats = self._more_stats
        self.met_before = met_before
        self.models = SwarmModels(self.registry, store, fetch_timeout=config.ipfs.fetch_timeout)
        self.daemon.find_model = self.models.find
        self.limiter = RateLimiter(self.settings.rate_limit())
        self._load_changed = trio.Event()
        self.daemon_address: str | None = None
        self.left_behind = 0
        """Records that no other node could take when this one left."""
        self._leadership: Leadership | None = None

    @classmethod
    async def open(cls, stack: AsyncExitStack, config: Config, home: Home, identity: Identity, member: Membership) -> Node:
        """The parts that others are built on, opened in order and closed in reverse by ``stack``."""
        settings = Settings(config)
        journal = await stack.enter_async_context(open_journal(home.path / "journal.db"))
        boots = int(await journal.get(BOOT_COUNT) or 0) + 1
        await journal.put(BOOT_COUNT, str(boots).encode())
        network = await stack.enter_async_context(node_parts.network(config, settings, identity, member))
        door = Door()
        dht = node_parts.dht(settings, member.swarm, network)
        store = await stack.enter_async_context(node_parts.store(config, settings, home, network, door.may_serve, dht))
        bridge = await stack.enter_async_context(open_bridge())
        electorates = await node_parts.electorates(config, settings, home, member, journal, network)
        met_before = await acquaintances.recall(journal)
        cards = await trio.to_thread.run_sync(gpus.look)
        key = await trio.to_thread.run_sync(node_parts.names_key, home)
        node = cls(config, home, identity, member, journal, network, store, bridge, boots, met_before, electorates, cards, key, dht)
        door.participation = node.keeping.participation
        return node

    async def serve(self, announce: Callable[[str], None], stop: trio.Event) -> None:
        """Runs all services until ``stop`` is set and the drain is over."""
        self.certificates.serve()
        resolve = resolver(self._daemon_of, self.network.remote_host)
        async with (
            open_pool(self.bridge, self.certificates, resolve, self.clock.monotonic, self.settings.channels()) as pool,
            trio.open_nursery() as nursery,
        ):
            client = GrpcDaemonClient(pool, self.identity.peer_id, self.daemon)
            await nursery.start(self.daemon.run)
            nursery.start_soon(self.certificates.run)
            nursery.start_soon(self._tell_load)
            async with self._daemon_server() as server:
                self.daemon_address = server.address
                self._announce_all(server.address)
                await nursery.start(self.registry.run)
                await nursery.start(self.keeping.run)
                if self.store.backend == "embedded":
                    await nursery.start(self.garbage.run)
                await nursery.start(self.elector.run)
                await nursery.start(self.state.run)
                for part in (self.dht, self.providing, self.events):
                    if part is not None:
                        await nursery.start(part.run)
                self._seek_acquaintances(nursery)
                await self._serve_locally(nursery, client, announce, stop)
            nursery.cancel_scope.cancel()

    async def _serve_locally(
        self, nursery: trio.Nursery, client: GrpcDaemonClient, announce: Callable[[str], None], stop: trio.Event
    ) -> None:
        api = self._local_node(client)
        leadership = Leadership(
            self.network,
            self.elector,
            self.bridge,
            lambda: self._orchestrator(client),
            self._any_seat,
            api,
            self._limit,
            self.settings.leadership(),
        )
        relay = Relay(self.network, self.elector, leadership.local, self.settings.relay())
        self._leadership = leadership
        node_socket, relay_socket = self.home.socket_path("node"), self.home.socket_path("orchestrator")
        async with serve_node(self.bridge, api, node_socket):
            await nursery.start(relay.run, relay_socket)
            nursery.start_soon(leadership.run)
            control = Control(node=f"unix:{node_socket}", orchestrator=f"unix:{relay_socket}", pid=os.getpid())
            await trio.to_thread.run_sync(self.home.write_control, control)
            try:
                await self._until_stopped(leadership, announce, stop)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self.home.clear_control)

    def _met(self) -> bool:
        return bool(self.network.peers())

    def _seek_acquaintances(self, nursery: trio.Nursery) -> None:
        for peer, addresses in self.met_before.items():
            self.network.add_address(peer, addresses)
        nursery.start_soon(acquaintances.keep, self.journal, self.registry, self.identity.peer_id, self.met_before)

    # --- life ---

    async def _until_stopped(self, leadership: Leadership, announce: Callable[[str], None], stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_ready, leadership, announce)
            await stop.wait()
            nursery.cancel_scope.cancel()
        self.left_behind = await leave(
            leadership.orchestrator, self.keeping, self.daemon, self.registry, self.elector, self.config.node.drain
        )

    async def _tell_ready(self, leadership: Leadership, announce: Callable[[str], None]) -> None:
        """Ready means that jobs can be submitted: some orchestrator serves, here or elsewhere. After the
        time that an election takes the node says so in any case: it is up, and still looking."""
        with trio.move_on_after(self.settings.ready_timeout()):
            while not (  # noqa: ASYNC110 - two sources, looked at for seconds only
                leadership.address or any(s.grpc for s in self.elector.seats() if s.peer != self.identity.peer_id)
            ):
                await trio.sleep(self.settings.ready_poll())
        grpc = leadership.address or "-"
        announce(f"dimnode ready: name={self.name} peer={self.identity.peer_id} swarm={self.member.swarm} grpc={grpc}")

    # --- what parts are given ---

    def _elector(self, start: Start) -> SwarmElector | MajorityElector:
        c, rules = self.config.election, self.settings.election()
        if c.mode == "majority":
            return MajorityElector(
                self.network, self.registry, self.journal, self.clock, self.electorates, rules, boot=self.boot, eligible=c.eligible
            )
        return SwarmElector(self.network, self.registry, self.journal, self.clock, rules, boot=self.boot, eligible=c.eligible, start=start)

    def _heartbeat(self, boots: int) -> Heartbeat:
        return Heartbeat(
            peer_id=self.identity.peer_id,
            name=self.name,
            swarm=self.member.swarm,
            protocol=PROTOCOL_VERSION,
            boot=self.boot,
            incarnation=boots,
            seq=0,
            addresses=self.network.addresses(),
            daemon="",
            capabilities=self.daemon.capabilities(),
            load=Load(),
            price=self.config.cost.price,
            eligible=self.config.election.eligible,
        )

    def _announce_all(self, daemon_address: str) -> None:
        """The daemon's port as others should dial it: a wildcard means "where you reached me"."""
        host, _, port = daemon_address.rpartition(":")
        told = self.config.daemon.announce or (f":{port}" if host in ("0.0.0.0", "[::]", "") else daemon_address)  # noqa: S104 - compared
        self.registry.announce(
            daemon=told,
            load=self.daemon.load(),
            models=self.daemon.models(),
            cabinets=self.daemon.cabinets(),
            addresses=self.network.addresses(),
        )

    def _daemon_changed(self, change: Change) -> None:
        match change:
            case "models":
                self.registry.announce(models=self.daemon.models())
            case "cabinets":
                self.registry.announce(cabinets=self.daemon.cabinets())
            case "load":
                self._load_changed.set()

    async def _tell_load(self) -> None:
        """The load goes into the heartbeat, at most so often: it changes with every task."""
        while True:
            await self._load_changed.wait()
            self._load_changed = trio.Event()
            self.registry.announce(load=self.daemon.load(), capabilities=self.daemon.capabilities())
            await trio.sleep(self.settings.load_interval())

    def _daemon_of(self, peer: str) -> str | None:
        found = self.registry.find(peer)
        return found[0].heartbeat.daemon if found else None

    def _authorized(self, peer: str) -> bool:
        """Tasks come from seat holders and from nodes on the allow-list."""
        return peer in self.config.election.allow or any(s.peer == peer for s in self.elector.seats())

    def _limit(self, principal: str) -> None:
        wait = self.limiter.take(principal, self.clock.monotonic())
        if wait is not None:
            raise ResourceExhausted("too many requests", hint=f"Try again in {wait:.2f} s.", retry_after=wait)

    def _orchestrator(self, client: GrpcDaemonClient) -> Orchestrator:
        settings = self.settings.orchestrator()
        return build_orchestrator(
            swarm=self.member.swarm,
            rules=self.rules,
            boot=self.boot,
            signer=self.identity,
            table=self.keeping.table,
            store=self.store,
            registry=self.registry,
            models=self.models,
            client=client,
            clock=self.clock,
            settings=settings,
            ask=ask_over(self.network, settings.inquiry_timeout),
            sync=self.keeping.sync,
            seats=lambda: frozenset((s.peer, s.boot) for s in self.elector.seats()),
        )

    def _any_seat(self, orchestrator: Orchestrator) -> AnySeat:
        ask = self.settings.leadership().ask
        keeping = self.keeping
        return AnySeat(
            orchestrator, keeping.table, self.network, self.elector, self.clock, ask, sharing=self.sharing, hint=keeping.hints.owner_of, search=keeping.search,
        )  # fmt: skip

    def _local_node(self, client: GrpcDaemonClient) -> LocalNode:
        return LocalNode(
            self.member.swarm,
            self.registry,
            self.elector,
            self.models,
            self.store,
            self.daemon,
            client=client,
            describe=self._describe,
            make_invite=self._invite,
            electorate=Electorate(self.electorates, self.elector, self.registry, self.config.election.mode),
            state=self.state.resolver,
            events=self.events,
            content=StoreDesk(self.store, self.garbage.collect, self.config.ipfs.fetch_timeout),
            max_artifact_bytes=self.config.daemon.model_bytes,
            fetch_timeout=self.config.ipfs.fetch_timeout,
        )

    def _describe(self) -> Mapping[str, Any]:
        leadership = self._leadership
        return {
            "peer_id": self.identity.peer_id,
            "name": self.name,
            "listen": list(self.network.addresses()),
            "grpc": leadership.address if leadership else None,
            "daemon_grpc": self.daemon_address,
            "gateway": None,
            "peers": len(self.network.peers()),
            "ipfs": {"backend": self.store.backend, **asdict(self.store.health())},
            "publishing": self.keeping.publishing(),
            "state": self.state.status(),
            "events": self.events.status(),
            "uptime": self.clock.monotonic() - self.started,
        }

    def _more_stats(self) -> Mapping[str, Any]:
        return {
            "records": self.keeping.statistics(),
            "state": self.state.statistics(),
            "events": self.events.statistics(),
            "dht": {**self.dht.statistics(), **self.providing.statistics()} if self.dht and self.providing else {},
        }

    def _invite(self) -> str:
        return make(
            Invite(
                swarm=self.member.swarm,
                key=self.member.key,
                addresses=self.network.addresses(),
                operator=self.electorates.operator,
                electorate=self.electorates.signed,
            )
        )

    @asynccontextmanager
    async def _daemon_server(self) -> AsyncGenerator[RunningServer, None]:
        listen = self.config.daemon.listen
        identity = NodeIdentity(self.identity.peer_id, self.name, lambda: self.clock.monotonic() - self.started)
        async with AsyncExitStack() as stack:

            async def open_on(address: str) -> RunningServer:
                return await stack.enter_async_context(
                    serve_daemon(self.bridge, self.daemon, self.certificates, self._authorized, identity, address)
                )

            try:
                server = await open_on(listen)
            except FailedPrecondition:
                if not self.config.is_default("daemon.listen"):
                    raise
                log.warning("daemon.port_taken", listen=listen, instead="a free port")
                server = await open_on(listen.rpartition(":")[0] + _ANY_PORT)
            yield server
