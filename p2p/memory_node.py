"""One node of the in-memory network: `MemoryNetwork`. The wire between them is `p2p.memory.MemoryHub`."""

from __future__ import annotations

import contextvars
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from p2p.memory import MemoryHub

HELD = 1024
"""Gossip messages that wait for a paused node; the oldest are lost."""


def address_of(peer: str) -> str:
    return f"/memory/{peer}/p2p/{peer}"


@dataclass(slots=True, eq=False)
class _Call:
    """One request under way."""

    asker: str
    method: str
    data: bytes
    timeout: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    answer: bytes = b""
    fault: RemoteFault | None = None
    broken: bool = False

    def result(self) -> bytes:
        if self.broken:
            raise Unreachable("the connection broke before the answer came")
        if self.fault is not None:
            raise RemoteFault(self.fault.code, self.fault.message)
        return self.answer


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
        self.context = contextvars.copy_context()
        self.paused = False
        self._awake = trio.Event()
        self._held: deque[GossipMessage] = deque(maxlen=HELD)
        self._tunnel_handlers: dict[str, TunnelHandler] = {}
        self._tunnels: list[tuple[str, trio.abc.AsyncResource]] = []
        self._asks: dict[_Call, str] = {}
        """Own requests under way, and of whom."""
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
        return self._hub.hosts.get(peer, "127.0.0.1") if peer in self._peers else None

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

    def pause(self) -> None:
        self.paused = True
        self._awake = trio.Event()

    def resume(self) -> None:
        self.paused = False
        self._awake.set()
        held, self._held = self._held, deque(maxlen=HELD)
        for message in held:
            self.receive(message)

    async def _up(self) -> None:
        while self.paused:
            await self._awake.wait()

    def note(self, peer: str, connected: bool) -> None:
        """The hub tells of a link."""
        if connected == (peer in self._peers):
            return
        (self._peers.add if connected else self._peers.discard)(peer)
        self._known.add(peer)
        self._events = [queue for queue in self._events if queue.put(PeerEvent(peer, connected))]
        if not connected:
            self._break_tunnels(peer)
            for call, asked in self._asks.items():
                if asked == peer:
                    call.broken = True
                    call.done.set()

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
        await self._up()
        if self.alive:
            self._counts["published"] += 1
            self._hub.spread(self._peer_id, topic, data)

    def subscribe(self, topic: str, validator: Validator, capacity: int = 1024) -> trio.MemoryReceiveChannel[GossipMessage]:
        queue = DropOldest[GossipMessage](capacity)
        self._subscriptions.setdefault(topic, []).append((validator, queue))
        self._hub.changed()
        return queue.reader()

    def listens(self, topic: str) -> bool:
        return any(not queue.abandoned for _, queue in self._subscriptions.get(topic, ()))

    def receive(self, message: GossipMessage) -> None:
        if self.paused:
            self._held.append(message)
            return
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
                await self._up()
                if peer == self._peer_id:
                    return await self.methods.call(peer, method, data)
                return await self._ask(peer, _Call(self._peer_id, method, data, timeout))
            raise RequestTimeout(f"no answer to {method} within {timeout} s")
        except (RequestTimeout, Unreachable):
            self._counts["failures"] += 1
            raise

    def _reach(self, peer: str) -> MemoryNetwork:
        known = peer in self._peers or peer in self._known
        if not self.alive or not known or not (self._hub.linked(self._peer_id, peer) or self._hub.link(self._peer_id, peer)):
            raise Unreachable(f"{peer} could not be reached")
        found = self._hub.networks.get(peer)
        if found is None:
            raise Unreachable(f"{peer} is not there any more")
        return found

    async def _ask(self, peer: str, call: _Call) -> bytes:
        other = self._reach(peer)
        self._asks[call] = peer
        self._hub.send(self._peer_id, peer, other.handle, call)
        try:
            await call.done.wait()
        finally:
            del self._asks[call]
            if self._hub.passes(self._peer_id, peer):
                call.scope.cancel()  # else its own time ends it
        return call.result()

    def handle(self, call: _Call) -> None:
        """Somebody's request has arrived: a task of this node answers it."""
        assert self._hub.nursery is not None
        if self.alive and not call.scope.cancel_called:
            self.context.copy().run(self._hub.nursery.start_soon, self._handle, call)

    async def _handle(self, call: _Call) -> None:
        self.scopes.add(call.scope)
        call.scope.deadline = trio.current_time() + call.timeout
        with call.scope:
            await self._up()
            try:
                call.answer = await self.methods.call(call.asker, call.method, call.data)
            except RemoteFault as fault:
                call.fault = fault
            await self._up()
            self._hub.send(self._peer_id, call.asker, call.done.set)
        self.scopes.discard(call.scope)

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
        self.context.copy().run(self._hub.nursery.start_soon, self._run_tunnel, handler, peer, mine)
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
