"""The in-memory twin of `p2p.network`: many nodes in one program, with seeded loss, delay and partition.

It uses trio's clock only, so a simulation under ``autojump_clock`` takes no real time. Lost messages, their
delays and their order depend on the seed alone. Unlike in the real network every pair of connected nodes
is joined by one link, and a partition is noticed at once (after ``notice`` seconds).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from types import TracebackType

import trio
import trio.testing

from p2p.api import (
    MAX_GOSSIP_BYTES,
    MAX_REQUEST_BYTES,
    GossipMessage,
    Handler,
    NetworkStatistics,
    PeerEvent,
    RemoteFault,
    RequestTimeout,
    TunnelHandler,
    Unreachable,
    Validator,
)
from p2p.queues import DropOldest
from p2p.server import Methods
from p2p.settings import RequestSettings

Pair = tuple[str, str]


def address_of(peer: str) -> str:
    return f"/memory/{peer}/p2p/{peer}"


class MemoryHub:
    """The wire. An async context manager: what is under way ends with it.

    ``loss`` is the share of gossip deliveries that get lost (requests and tunnels are never lost, only cut);
    ``delay`` the least and most seconds that anything takes one way.
    """

    def __init__(self, seed: int = 0, loss: float = 0.0, delay: tuple[float, float] = (0.0, 0.0), notice: float = 0.0) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a simulation
        self.loss = loss
        self.delay = delay
        self.notice = notice
        self.networks: dict[str, MemoryNetwork] = {}
        self._links: dict[frozenset[str], bool] = {}
        """Pairs that were connected and not disconnected on purpose; True while the link is up."""
        self._cut: set[Pair] = set()
        self._groups: dict[str, int] = {}
        self._manager = trio.open_nursery()
        self.nursery: trio.Nursery | None = None

    async def __aenter__(self) -> MemoryHub:
        self.nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        assert self.nursery is not None
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    # --- nodes

    def network(self, peer_id: str) -> MemoryNetwork:
        """A node that joins the hub, unconnected; again under the same id after a `crash`."""
        if peer_id in self.networks:
            raise ValueError(f"{peer_id} is there already")
        network = self.networks[peer_id] = MemoryNetwork(self, peer_id)
        return network

    def connect_all(self) -> None:
        for one, other in itertools.combinations(list(self.networks), 2):
            self.link(one, other)

    def crash(self, peer_id: str) -> None:
        """As kill -9: whoever was connected notices, nothing is said goodbye."""
        network = self.networks.pop(peer_id)
        network.alive = False
        for pair in [pair for pair in self._links if peer_id in pair]:
            self._take_down(pair)
            del self._links[pair]
        network.end()

    # --- faults

    def partition(self, *groups: Iterable[str]) -> None:
        """Only nodes of one group reach each other; nodes that are not named form a group of their own."""
        self._groups = {peer: index for index, group in enumerate(groups, start=1) for peer in group}
        self._review()

    def cut(self, source: str, target: str) -> None:
        """Nothing from source arrives at target any more; the other way goes on, and nobody notices."""
        self._cut.add((source, target))

    def heal(self) -> None:
        """Ends partition and cuts; links that were up before come up again."""
        self._groups = {}
        self._cut = set()
        self._review()

    def _review(self) -> None:
        for pair, up in list(self._links.items()):
            if up and not self._together(*pair):
                self._take_down(pair)
            elif not up and self._together(*pair):
                self._bring_up(pair)

    def _together(self, one: str, other: str) -> bool:
        both = one in self.networks and other in self.networks
        return both and self._groups.get(one, 0) == self._groups.get(other, 0)

    def passes(self, source: str, target: str) -> bool:
        """Whether bytes get from source to target, connected or not."""
        return self._together(source, target) and (source, target) not in self._cut

    # --- links

    def link(self, one: str, other: str) -> bool:
        """Connects two nodes; False if they cannot reach each other."""
        pair = frozenset((one, other))
        if one == other or not self.passes(one, other) or not self.passes(other, one):
            return False
        if not self._links.get(pair):
            self._bring_up(pair)
        return True

    def unlink(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if self._links.get(pair):
            self._take_down(pair)
        self._links.pop(pair, None)

    def linked(self, one: str, other: str) -> bool:
        return self._links.get(frozenset((one, other)), False)

    def _bring_up(self, pair: frozenset[str]) -> None:
        self._links[pair] = True
        self._tell(pair, connected=True)

    def _take_down(self, pair: frozenset[str]) -> None:
        self._links[pair] = False
        if self.notice:
            assert self.nursery is not None
            self.nursery.start_soon(self._tell_later, pair)
        else:
            self._tell(pair, connected=False)

    async def _tell_later(self, pair: frozenset[str]) -> None:
        await trio.sleep(self.notice)
        if not self._links.get(pair):
            self._tell(pair, connected=False)

    def _tell(self, pair: frozenset[str], *, connected: bool) -> None:
        one, other = sorted(pair)
        for network, peer in ((self.networks.get(one), other), (self.networks.get(other), one)):
            if network is not None:
                network.note(peer, connected)

    # --- traffic

    async def travel(self, source: str, target: str) -> None:
        """One way of a request. Never returns where bytes do not pass."""
        await trio.sleep(self.rng.uniform(*self.delay))
        if not self.passes(source, target):
            await trio.sleep_forever()

    def spread(self, author: str, topic: str, data: bytes) -> None:
        """Gossip reaches whoever is connected to the author, directly or through others of the topic."""
        assert self.nursery is not None
        for peer in self._reachable(author, topic):
            if self.rng.random() >= self.loss:
                self.nursery.start_soon(self._deliver, peer, GossipMessage(topic, author, data), self.rng.uniform(*self.delay))

    def _reachable(self, author: str, topic: str) -> list[str]:
        reached = {author: None}
        frontier = [author]
        while frontier:
            here = frontier.pop()
            for peer in sorted(self.networks[here].peers()):
                if peer not in reached and self.passes(here, peer) and self.networks[peer].listens(topic):
                    reached[peer] = None
                    frontier.append(peer)
        return [peer for peer in reached if peer != author]

    async def _deliver(self, peer: str, message: GossipMessage, delay: float) -> None:
        await trio.sleep(delay)
        network = self.networks.get(peer)
        if network is not None:
            network.receive(message)


class MemoryNetwork:
    """See `p2p.api.Network`."""

    def __init__(self, hub: MemoryHub, peer_id: str, settings: RequestSettings | None = None) -> None:
        self._hub = hub
        self._peer_id = peer_id
        self.alive = True
        self._peers: set[str] = set()
        self._known: set[str] = set()
        self._subscriptions: dict[str, list[tuple[Validator, DropOldest[GossipMessage]]]] = {}
        self._events: list[DropOldest[PeerEvent]] = []
        self.methods = Methods(settings or RequestSettings())
        self._tunnel_handlers: dict[str, TunnelHandler] = {}
        self._tunnels: list[tuple[str, trio.abc.AsyncResource]] = []
        self._asks: list[tuple[str, trio.CancelScope]] = []
        self.scopes: set[trio.CancelScope] = set()
        """Work that this node does for others: ends when it crashes."""
        self._counts: Counter[str] = Counter()

    @property
    def peer_id(self) -> str:
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        return (address_of(self._peer_id),)

    def peers(self) -> frozenset[str]:
        return frozenset(self._peers)

    def remote_host(self, peer: str) -> str | None:
        return "127.0.0.1" if peer in self._peers else None

    async def connect(self, address: str) -> str:
        await trio.lowlevel.checkpoint()
        peer = address.rpartition("/p2p/")[2]
        if address != address_of(peer) or not self._hub.link(self._peer_id, peer):
            raise Unreachable(f"{address} does not answer")
        return peer

    def add_address(self, peer: str, addresses: tuple[str, ...]) -> None:
        if address_of(peer) in addresses:
            self._known.add(peer)

    async def disconnect(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        self._hub.unlink(self._peer_id, peer)

    def note(self, peer: str, connected: bool) -> None:
        """The hub tells of a link."""
        if connected == (peer in self._peers):
            return
        (self._peers.add if connected else self._peers.discard)(peer)
        self._known.add(peer)
        self._events = [queue for queue in self._events if queue.put(PeerEvent(peer, connected))]
        if not connected:
            self._break_tunnels(peer)
            for asked, scope in self._asks:
                if asked == peer:
                    scope.cancel()

    def _break_tunnels(self, peer: str | None) -> None:
        for owner, stream in self._tunnels:
            if peer in (None, owner):
                _break(stream)
        self._tunnels = [entry for entry in self._tunnels if peer is not None and entry[0] != peer]

    def end(self) -> None:
        """The hub tells of the crash."""
        self._peers.clear()
        self._break_tunnels(None)
        for scope in list(self.scopes):
            scope.cancel()
        for queue in [queue for entries in self._subscriptions.values() for _, queue in entries] + self._events:
            queue.close()

    # --- gossip

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_GOSSIP_BYTES:
            raise ValueError(f"a gossip message has at most {MAX_GOSSIP_BYTES} bytes, not {len(data)}")
        await trio.lowlevel.checkpoint()
        if self.alive:
            self._counts["published"] += 1
            self._hub.spread(self._peer_id, topic, data)

    def subscribe(self, topic: str, validator: Validator, capacity: int = 1024) -> trio.MemoryReceiveChannel[GossipMessage]:
        queue = DropOldest[GossipMessage](capacity)
        self._subscriptions.setdefault(topic, []).append((validator, queue))
        return queue.reader()

    def listens(self, topic: str) -> bool:
        return any(not queue.abandoned for _, queue in self._subscriptions.get(topic, ()))

    def receive(self, message: GossipMessage) -> None:
        entries = self._subscriptions.get(message.topic, [])
        if not all(_accepts(validator, message) for validator, _ in entries):
            self._counts["refused"] += 1
            return
        self._counts["delivered"] += sum(queue.put(message) for _, queue in entries)

    # --- requests

    async def request(self, peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request has at most {MAX_REQUEST_BYTES} bytes, not {len(data)}")
        self._counts["requests"] += 1
        try:
            with trio.move_on_after(timeout):
                if peer == self._peer_id:
                    return await self.methods.call(peer, method, data)
                return await self._ask(peer, method, data)
            raise RequestTimeout(f"no answer to {method} within {timeout} s")
        except (RequestTimeout, Unreachable):
            self._counts["failures"] += 1
            raise

    def _reach(self, peer: str) -> MemoryNetwork:
        known = peer in self._peers or peer in self._known
        if not self.alive or not known or not (self._hub.linked(self._peer_id, peer) or self._hub.link(self._peer_id, peer)):
            raise Unreachable(f"{peer} could not be reached")
        return self._hub.networks[peer]

    async def _ask(self, peer: str, method: str, data: bytes) -> bytes:
        other = self._reach(peer)
        with trio.CancelScope() as scope:
            self._asks.append((peer, scope))
            other.scopes.add(scope)
            try:
                await self._hub.travel(self._peer_id, peer)
                answer = await other.methods.call(self._peer_id, method, data)
                await self._hub.travel(peer, self._peer_id)
                return answer
            finally:
                self._asks.remove((peer, scope))
                other.scopes.discard(scope)
        raise Unreachable("the connection broke before the answer came")

    def serve(self, method: str, handler: Handler, concurrency: int = 64) -> None:
        self.methods.serve(method, handler, concurrency)

    # --- tunnels

    async def open_tunnel(self, peer: str, name: str, *, timeout: float) -> trio.abc.HalfCloseableStream:
        with trio.move_on_after(timeout):
            self._reach(peer)
            await self._hub.travel(self._peer_id, peer)
            other = self._reach(peer)
            mine = other.accept_tunnel(self._peer_id, name)
            self._tunnels.append((peer, mine))
            return mine
        raise RequestTimeout(f"{peer} did not accept tunnel {name} within {timeout} s")

    def accept_tunnel(self, peer: str, name: str) -> trio.abc.HalfCloseableStream:
        handler = self._tunnel_handlers.get(name)
        if handler is None:
            raise RemoteFault("UNIMPLEMENTED", f"the peer does not offer {name}")
        theirs, mine = trio.testing.memory_stream_pair()
        self._tunnels.append((peer, mine))
        assert self._hub.nursery is not None
        self._hub.nursery.start_soon(self._run_tunnel, handler, peer, mine)
        return theirs

    async def _run_tunnel(self, handler: TunnelHandler, peer: str, stream: trio.abc.HalfCloseableStream) -> None:
        with trio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                async with stream:
                    await handler(peer, stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            except Exception:  # noqa: BLE001 - as the real network: a failing handler ends its tunnel only
                _break(stream)
            finally:
                self.scopes.discard(scope)

    def serve_tunnel(self, name: str, handler: TunnelHandler) -> None:
        self._tunnel_handlers[name] = handler

    # --- views

    def peer_events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        queue = DropOldest[PeerEvent](4096)
        self._events.append(queue)
        return queue.reader()

    def statistics(self) -> NetworkStatistics:
        return NetworkStatistics(
            connected=len(self._peers),
            published=self._counts["published"],
            delivered=self._counts["delivered"],
            refused=self._counts["refused"],
            dropped=sum(queue.dropped for entries in self._subscriptions.values() for _, queue in entries),
            requests=self._counts["requests"],
            request_failures=self._counts["failures"],
        )


def _accepts(validator: Validator, message: GossipMessage) -> bool:
    try:
        return bool(validator(message.author, message.data))
    except Exception:  # noqa: BLE001 - the contract of `Validator`: an exception is a refusal
        return False


def _break(stream: trio.abc.AsyncResource) -> None:
    """Both directions of a memory stream, at once: its users see a broken tunnel."""
    assert isinstance(stream, trio.StapledStream)
    send: trio.testing.MemorySendStream = stream.send_stream  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    receive: trio.testing.MemoryReceiveStream = stream.receive_stream  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    send.close()
    receive.close()
