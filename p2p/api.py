"""What the rest of DIM sees of the network: no libp2p type leaves `p2p/`.

Two implementations: `p2p.network.Libp2pNetwork` (real) and `p2p.memory.MemoryNetwork` (its twin with
seeded loss, delay, partition). Gossip carries hints and may lose them; requests and tunnels are
acknowledged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio


class NetworkError(Exception):
    """A peer could not be spoken to."""


class Unreachable(NetworkError):
    """No connection to the peer and none could be made."""


class RequestTimeout(NetworkError):
    """No answer in time; the request may or may not have been acted on."""


class RemoteFault(NetworkError):
    """The peer answered with a refusal."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class PortInUse(NetworkError):
    """A listen address is taken."""


@dataclass(frozen=True, slots=True)
class GossipMessage:
    topic: str
    author: str
    """Peer id whose signature the message carries (verified)."""
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerEvent:
    peer: str
    connected: bool


Validator = Callable[[str, bytes], bool]
"""(author, data) -> accept. Runs before a message is delivered or forwarded; must be quick, may not
raise (an exception counts as a refusal)."""
Handler = Callable[[str, bytes], Awaitable[bytes]]
"""(peer, request) -> answer. May raise `RemoteFault` to refuse; anything else becomes an INTERNAL
refusal and is logged."""
TunnelHandler = Callable[[str, trio.abc.HalfCloseableStream], Awaitable[None]]

MAX_GOSSIP_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    connected: int
    published: int
    delivered: int
    refused: int
    """Gossip that a validator refused."""
    dropped: int
    """Gossip dropped because a subscriber's queue was full."""
    requests: int
    request_failures: int


class Network(Protocol):
    """One node's view of the swarm."""

    @property
    def peer_id(self) -> str: ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that others can dial, each ending in ``/p2p/{peer_id}``."""
        ...

    def peers(self) -> frozenset[str]:
        """Peers with a live connection."""
        ...

    def remote_host(self, peer: str) -> str | None:
        """IP address at which a connected peer was reached, if known."""
        ...

    async def connect(self, address: str) -> str:
        """Dial a multiaddr; returns the peer id. Raises `Unreachable`."""
        ...

    def add_address(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Remember where a peer may be dialled; `request` dials on demand."""
        ...

    async def disconnect(self, peer: str) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip; waits while the outgoing queues are full. At most `MAX_GOSSIP_BYTES` (`ValueError`)."""
        ...

    def subscribe(self, topic: str, validator: Validator, capacity: int = 1024) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Own messages are not delivered. When the queue is full the oldest hint is dropped and counted."""
        ...

    async def request(self, peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
        """One request, one answer over a multiplexed stream. Raises `Unreachable`, `RequestTimeout`,
        `RemoteFault`. Cancellation is always safe."""
        ...

    def serve(self, method: str, handler: Handler, concurrency: int = 64) -> None:
        """At most ``concurrency`` at once per method; further requests wait, bounded, then are refused
        with RESOURCE_EXHAUSTED."""
        ...

    async def open_tunnel(self, peer: str, name: str, *, timeout: float) -> trio.abc.HalfCloseableStream:
        """A byte stream of its own to a peer. Raises `Unreachable`, `RequestTimeout`, `RemoteFault`."""
        ...

    def serve_tunnel(self, name: str, handler: TunnelHandler) -> None: ...

    def peer_events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        """Every connect and disconnect from now on; one channel per call."""
        ...

    def statistics(self) -> NetworkStatistics: ...
