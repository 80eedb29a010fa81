"""Everything that can be set about a node's network, with its default. Times are seconds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DialSettings:
    """How peers are found and found again."""

    timeout: float = 5.0
    """For one address: TCP, swarm key, noise and multiplexer. A wrong swarm key ends here."""
    stagger: float = 0.15
    """Between the starts of dials to several addresses of one peer."""
    backoff_first: float = 0.5
    backoff_most: float = 30.0
    """A bootstrap peer is tried for ever, at this interval at the most."""
    backoff_factor: float = 2.0
    jitter: float = 0.3
    """Share of an interval that is random, so that a swarm does not dial in step."""
    at_once: int = 8
    target_peers: int = 6
    """While fewer peers are connected, peers with known addresses are dialled too, so that the swarm holds
    together when the bootstrap peers are gone."""
    known_peers: int = 2048
    """Peers whose addresses are remembered; the longest unmentioned are forgotten."""
    known_attempts: int = 8
    """Failures in a row after which a peer that is no bootstrap peer waits for its next mention."""


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How a silent peer is noticed."""

    interval: float = 1.5
    timeout: float = 4.0
    """Without a byte from the peer for this long after a ping the connection is closed."""


@dataclass(frozen=True, slots=True)
class GossipSettings:
    degree: int = 6
    degree_low: int = 4
    degree_high: int = 12
    heartbeat: float = 1.0
    queue_high: int = 16
    """Messages in a peer's outgoing queue (which holds 32) from which `publish` waits."""
    patience: float = 1.0
    """How long `publish` waits for the slowest peer; afterwards that peer loses messages, the others do not."""
    seen_ttl: float = 120.0
    seen_most: int = 100_000
    watchdog: float = 2.0
    """Between checks that every connected peer has a live gossip stream."""
    repeat: float = 15.0
    """Between repeats of the own subscriptions, which heal whatever the events missed."""


@dataclass(frozen=True, slots=True)
class RequestSettings:
    backlog: int = 256
    """Requests per method that wait for their turn; more are refused with RESOURCE_EXHAUSTED."""
    per_peer: int = 256
    """Requests of one peer that are in progress or waiting; more are refused."""
    assembling: int = 64 * MIB
    """Bytes of one peer's requests that are incomplete or in progress."""
    outgoing: int = 256 * 1024
    """Bytes queued for a stream before its writers wait."""
    open_timeout: float = 5.0
    """To agree on a protocol over an existing connection."""


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    per_peer: int = 64
    """Tunnels that one peer may have open here."""
    open_timeout: float = 5.0
    """For the other side's word whether it accepts."""
    linger: float = 5.0
    """After a close: how long the other side may take to read what is under way."""


@dataclass(frozen=True, slots=True)
class MdnsSettings:
    enabled: bool = False
    interfaces: tuple[str, ...] = ()
    """IP addresses of the interfaces to use; empty means all."""
    lookup_timeout: float = 3.0


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    swarm: str = "default"
    """Swarm name: swarms of different names do not meet by mDNS."""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    """Multiaddrs; port 0 means any free one."""
    announce: tuple[str, ...] = ()
    """Multiaddrs told to others instead of the listen addresses."""
    psk: str | None = None
    """Swarm key: 64 hexadecimal digits."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs with ``/p2p/{peer id}``, dialled until they answer, again after each loss."""
    allow: frozenset[str] = frozenset()
    """Peer ids that may connect; empty means all that know the swarm key."""
    max_connections: int = 512
    peer_events: int = 4096
    """Events kept for a slow reader of `peer_events`; the oldest is dropped."""
    drain: float = 2.0
    """At close: how long tunnels may flush and connections may say goodbye."""
    dial: DialSettings = field(default_factory=DialSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    gossip: GossipSettings = field(default_factory=GossipSettings)
    requests: RequestSettings = field(default_factory=RequestSettings)
    tunnels: TunnelSettings = field(default_factory=TunnelSettings)
    mdns: MdnsSettings = field(default_factory=MdnsSettings)

    def __post_init__(self) -> None:
        if self.psk is not None and (len(self.psk) != 64 or set(self.psk) - set("0123456789abcdefABCDEF")):
            raise ValueError("a swarm key is 64 hexadecimal digits (32 bytes)")


def mdns_service(swarm: str) -> str:
    """DNS-SD service type of a swarm: at most 15 characters of name, so the swarm's name is hashed."""
    return f"_dim-{hashlib.sha256(swarm.encode()).hexdigest()[:10]}._udp.local."
