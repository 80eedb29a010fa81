"""The registry (`dimnode.ports.Registry`): a trio shell around `dimnode.core.membership`.

The own heartbeat is gossiped; on every new connection two nodes also exchange heartbeats directly, and the
answer holds those of all members that the other side knows, so that a newcomer need not wait for a round of gossip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
import trio

from dimnode.core.membership import Change, MemberEvent, Membership, MembershipSettings, Refusal
from dimnode.domain import codec
from dimnode.domain.model import ModelRef
from dimnode.domain.node import CabinetInfo, Capabilities, Heartbeat, Load, NodeState
from dimnode.ports import Clock, NodeView, Signer
from dimnode.swarm import heartbeats
from dimnode.swarm.heartbeats import Exchange, HeartbeatRefused, SignedHeartbeat
from p2p.api import GossipMessage, Network, NetworkError, RemoteFault
from p2p.identity import verify as verify_with_peer_id

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    inbox: int = 1024
    """Heartbeats that wait to be taken in; the oldest is dropped for a newer one."""
    tick: float = 0.5
    """Seconds between looks at who has fallen silent."""
    exchange_timeout: float = 3.0
    exchanges: int = 16
    """At once; further connections wait."""
    exchange_bytes: int = 1024 * 1024
    """Heartbeats in one answer, at the most."""
    exchange_attempts: int = 3


class SwarmRegistry:
    """``me`` is the own heartbeat as it first goes out: its ``seq`` and ``interval`` are kept up here, the rest
    changes by `announce`."""

    def __init__(
        self,
        network: Network,
        signer: Signer,
        clock: Clock,
        me: Heartbeat,
        membership: MembershipSettings | None = None,
        settings: RegistrySettings | None = None,
        *,
        verify: heartbeats.Verify = verify_with_peer_id,
    ) -> None:
        self._network = network
        self._signer = signer
        self._clock = clock
        self._settings = settings or RegistrySettings()
        self._verify = verify
        self._membership = Membership(membership or MembershipSettings(), me.peer_id)
        self._me = me
        self._signed_me: SignedHeartbeat | None = None
        self._signed: dict[str, SignedHeartbeat] = {}
        self._counts: Counter[str] = Counter()
        self._version = 1
        self._changed = trio.Event()
        self._speak = trio.Event()
        self._views: tuple[int, tuple[NodeView, ...]] = (0, ())
        self._exchanging: set[str] = set()
        self._gone: dict[str, trio.Event] = {}
        """Set when that peer is dead, has left or is removed; only for peers that somebody waits for."""
        self._limit = trio.CapacityLimiter(self._settings.exchanges)
        self._inbox = network.subscribe(heartbeats.TOPIC, self._validate, self._settings.inbox)
        self._peer_events = network.peer_events()
        network.serve(heartbeats.METHOD, self._serve_exchange)

    # --- dimnode.ports.Registry -----------------------------------------------------------------

    def nodes(self) -> tuple[NodeView, ...]:
        version, views = self._views
        if version != self._version:
            offset = self._clock.wall() - self._clock.monotonic()
            others = (NodeView(m.heartbeat, m.state, m.seen + offset) for m in self._membership)
            views = (NodeView(self._me, "alive", self._clock.wall()), *others)
            self._views = (self._version, views)
        return views

    def find(self, name_or_id: str) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if name_or_id in (v.heartbeat.peer_id, v.heartbeat.name))

    def alive(self) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if v.state == "alive")

    def changed(self) -> int:
        return self._version

    async def wait_changed(self, since: int) -> int:
        await trio.lowlevel.checkpoint()
        while self._version <= since:
            await self._changed.wait()
        return self._version

    async def wait_gone(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        while self.state(peer) not in ("dead", "removed"):
            await self._gone.setdefault(peer, trio.Event()).wait()

    def announce(
        self,
        *,
        load: Load | None = None,
        capabilities: Capabilities | None = None,
        models: Sequence[ModelRef] | None = None,
        cabinets: Sequence[CabinetInfo] | None = None,
        addresses: Sequence[str] | None = None,
        daemon: str | None = None,
        leaving: bool | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "load": load,
            "capabilities": capabilities,
            "models": None if models is None else tuple(models),
            "cabinets": None if cabinets is None else tuple(cabinets),
            "addresses": None if addresses is None else tuple(addresses),
            "daemon": daemon,
            "leaving": leaving,
        }
        new = {k: v for k, v in given.items() if v is not None and v != getattr(self._me, k)}
        if new:
            self._update_me(**new)
            if new.keys() != {"load"}:
                self._speak.set()

    def signed(self) -> Mapping[str, SignedHeartbeat]:
        """The latest heartbeats of this node and of the members that have not left, by peer id: for others to check."""
        return {self._me.peer_id: self._say(), **self._signed}

    # --- more -----------------------------------------------------------------------------------

    def state(self, peer: str) -> NodeState:
        """``removed`` for unknown peers."""
        return "alive" if peer == self._me.peer_id else self._membership.state(peer)

    def statistics(self) -> Mapping[str, int]:
        """Heartbeats ``sent`` and ``received``, and those that did no harm, by reason: forged, malformed, oversized,
        foreign, stale, rapid, leap, full, clone."""
        return dict(self._counts) | {"members": len(self._membership)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Speaks, listens and judges until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._watch_silence)
            nursery.start_soon(self._watch_connections, nursery)
            for peer in self._network.peers():
                nursery.start_soon(self._meet, peer)
            task_status.started()
            await self._speak_loop()

    # --- speaking -------------------------------------------------------------------------------

    def _update_me(self, **changes: Any) -> None:
        self._me = msgspec.structs.replace(self._me, **changes)
        self._signed_me = None
        self._bump()

    def _say(self) -> SignedHeartbeat:
        """The own heartbeat, anew if anything changed since it was signed last."""
        if self._signed_me is None:
            self._me = msgspec.structs.replace(self._me, seq=self._me.seq + 1, interval=self._membership.interval())
            self._signed_me = heartbeats.sign(self._me, self._signer)
        return self._signed_me

    async def _speak_loop(self) -> None:
        while True:
            self._speak = trio.Event()
            self._signed_me = None
            data = codec.encode(self._say())
            try:
                await self._network.publish(heartbeats.TOPIC, data)
                self._counts["sent"] += 1
            except (NetworkError, ValueError) as e:
                log.warning("heartbeat not sent", error=str(e), bytes=len(data))
            with trio.move_on_after(self._membership.interval()):
                await self._speak.wait()

    # --- listening ------------------------------------------------------------------------------

    def _validate(self, author: str, data: bytes) -> bool:
        try:
            signed = heartbeats.unpack(data)
            if signed.author != author:
                raise HeartbeatRefused("forged")
            self._believe(signed)
        except HeartbeatRefused as e:
            self._counts[e.reason] += 1
            return False
        return True

    def _believe(self, signed: SignedHeartbeat) -> Heartbeat:
        """Cheap checks first; a signature is checked only of what is news. Raises `HeartbeatRefused`."""
        heartbeat = heartbeats.read(signed, swarm=self._me.swarm, protocol=self._me.protocol)
        mine = heartbeat.peer_id == self._me.peer_id
        refusal = self._own_echo(heartbeat) if mine else self._membership.judge(heartbeat, self._clock.monotonic())
        if refusal is not None:
            raise HeartbeatRefused(refusal)
        if not heartbeats.authentic(signed, self._verify):
            raise HeartbeatRefused("forged")
        if mine:
            self._outdo(heartbeat)
            raise HeartbeatRefused("clone")
        return heartbeat

    def _own_echo(self, heartbeat: Heartbeat) -> str | None:
        """Only a heartbeat of mine that I did not write and that hides mine is worth a look."""
        hides = heartbeat.boot != self._me.boot and heartbeat.incarnation >= self._me.incarnation
        return None if hides else Refusal.STALE

    def _outdo(self, heartbeat: Heartbeat) -> None:
        """The swarm remembers a higher incarnation of this node than its disk does."""
        self._update_me(incarnation=heartbeat.incarnation + 1, seq=0)
        self._speak.set()

    def _take(self, signed: SignedHeartbeat, heartbeat: Heartbeat) -> None:
        """A heartbeat that was checked enters the membership."""
        before = self._membership.get(heartbeat.peer_id)
        known = before.heartbeat.addresses if before is not None else ()
        events = self._membership.observe(heartbeat, self._clock.monotonic())
        if isinstance(events, Refusal):
            self._counts[events] += 1
            return
        self._counts["received"] += 1
        if heartbeat.addresses != known:
            self._network.add_address(heartbeat.peer_id, heartbeat.addresses)
        self._signed[heartbeat.peer_id] = signed
        self._note(events)

    def _note(self, events: Sequence[MemberEvent]) -> None:
        for event in events:
            if event.change in (Change.LEFT, Change.REMOVED):
                self._signed.pop(event.peer, None)
            if event.change in (Change.DIED, Change.LEFT, Change.REMOVED):
                gone = self._gone.pop(event.peer, None)
                if gone is not None:
                    gone.set()
            if event.change is not Change.UPDATED:
                log.info("member", peer=event.peer, change=event.change.value)
        if events:
            self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def _listen(self) -> None:
        async for message in self._inbox:
            self._receive(message)

    def _receive(self, message: GossipMessage) -> None:
        """The validator let it pass; meanwhile it may have become stale, which `_take` notices."""
        signed = heartbeats.unpack(message.data)
        self._take(signed, codec.decode(signed.payload, Heartbeat))

    async def _watch_silence(self) -> None:
        while True:
            await trio.sleep(self._settings.tick)
            self._note(self._membership.tick(self._clock.monotonic()))
            for peer in [p for p in self._signed if self._membership.get(p) is None]:
                del self._signed[peer]

    # --- connections ----------------------------------------------------------------------------

    async def _watch_connections(self, nursery: trio.Nursery) -> None:
        async for event in self._peer_events:
            if not event.connected:
                self._membership.disconnected(event.peer, self._clock.monotonic())
                if self._membership.get(event.peer) is None:
                    continue
            if event.peer not in self._exchanging:
                nursery.start_soon(self._meet, event.peer)

    async def _meet(self, peer: str) -> None:
        """Exchange heartbeats; after a disconnect the same shows whether the peer is still there."""
        if peer in self._exchanging:
            return
        self._exchanging.add(peer)
        try:
            async with self._limit:
                for attempt in range(self._settings.exchange_attempts):
                    if await self._exchange(peer):
                        return
                    await trio.sleep(self._settings.tick * (attempt + 1))
        finally:
            self._exchanging.discard(peer)

    async def _exchange(self, peer: str) -> bool:
        request = codec.encode(Exchange(heartbeats=(self._say(),), suspects=self._suspects()))
        try:
            answer = await self._network.request(peer, heartbeats.METHOD, request, timeout=self._settings.exchange_timeout)
            exchange = codec.decode(answer, Exchange)
        except (NetworkError, codec.CodecError) as e:
            log.debug("no exchange of heartbeats", peer=peer, error=str(e))
            return False
        self._heed(exchange)
        for signed in exchange.heartbeats:
            await trio.lowlevel.checkpoint()
            self._take_relayed(signed)
        return True

    async def _serve_exchange(self, peer: str, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            exchange = codec.decode(data, Exchange) if len(data) <= 2 * heartbeats.MAX_BYTES else None
        except codec.CodecError:
            exchange = None
        if exchange is None or len(exchange.heartbeats) != 1 or exchange.heartbeats[0].author != peer:
            self._counts["malformed"] += 1
            raise RemoteFault("INVALID_ARGUMENT", "an exchange holds the sender's own heartbeat")
        self._heed(exchange)
        self._take_relayed(exchange.heartbeats[0])
        return codec.encode(Exchange(heartbeats=self._known(peer), suspects=self._suspects()))

    def _take_relayed(self, signed: SignedHeartbeat) -> None:
        try:
            self._take(signed, self._believe(signed))
        except HeartbeatRefused as e:
            self._counts[e.reason] += 1

    def _heed(self, exchange: Exchange) -> None:
        if self._me.peer_id in exchange.suspects:
            self._speak.set()

    def _known(self, asker: str) -> tuple[SignedHeartbeat, ...]:
        """The own heartbeat, the asker's own as it is remembered here (it may have to outdo it), then the living."""
        out = [self._say()]
        size = len(out[0].payload)
        order = sorted(self._signed, key=lambda p: p != asker)
        for peer in order:
            signed = self._signed[peer]
            size += len(signed.payload) + 256
            if size > self._settings.exchange_bytes:
                break
            if peer == asker or self._membership.state(peer) in ("alive", "suspect"):
                out.append(signed)
        return tuple(out)

    def _suspects(self) -> tuple[str, ...]:
        return tuple(m.heartbeat.peer_id for m in self._membership if m.state == "suspect")[:1024]
