"""The libp2p host of a node: noise and yamux over TCP, nothing else.

py-libp2p offers plaintext and secio to whoever asks for them, and with plaintext a peer's identity is what it
claims to be; so the list of security transports is given here and holds noise only.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

import psutil
import trio
from libp2p import create_yamux_muxer_option, new_host
from libp2p.abc import INetConn
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm, _NegativePeerCache
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.rcmgr.manager import ConnectionScope, ResourceLimits, ResourceManager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from p2p import patches
from p2p.api import NetworkError, PortInUse, Unreachable
from p2p.identity import Identity, is_peer_id, peer_id_bytes
from p2p.settings import NetworkSettings

log = logging.getLogger(__name__)
MAX_STREAMS = 65_536
LOOPBACK = "127."


class Stream(Protocol):
    """What of a libp2p stream is used here (reads are short reads)."""

    muxed_conn: Any

    async def read(self, n: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...
    async def close_write(self) -> None: ...
    async def reset(self) -> None: ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Gate(ResourceManager):
    """Admits peers of the allow-list (all, if it is empty) once their identity is proved, which has to be an Ed25519 key.

    The other duties of libp2p's resource manager are off: its circuit breaker shuts everybody out for a
    minute after five refusals, which any stranger can cause.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(
            limits=ResourceLimits(max_connections=2 * settings.max_connections, max_streams=MAX_STREAMS),
            enable_metrics=False,
            enable_memory_limits=False,
            enable_circuit_breaker=False,
            enable_graceful_degradation=False,
            enable_rate_limiting=False,
        )
        self._allow = settings.allow
        self.refused = 0

    def open_connection(
        self, peer_id: ID | None = None, endpoint_ip: str | None = None, direction: str = "inbound"
    ) -> ConnectionScope | None:
        # Before the handshake the peer is unknown (None); the same question comes again after it.
        reason = "" if peer_id is None else self._objection(str(peer_id))
        if reason:
            self.refused += 1
            log.info("refused a connection: %s", reason, extra={"peer": str(peer_id)})
            return None
        return super().open_connection(peer_id, endpoint_ip, direction)

    def _objection(self, peer: str) -> str:
        if not is_peer_id(peer):
            return "the peer's identity is no Ed25519 key (an old Kubo repository gets one by `ipfs key rotate`)"
        return "peer is not on the allow-list" if self._allow and peer not in self._allow else ""


class NoConnector:
    """In place of libp2p's auto-connector, which dials every address that it ever heard of, 256 at a time, even
    with its watermarks at zero. Whom to dial is decided in `p2p.discovery`."""

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """No task."""

    async def maybe_connect(self) -> None:
        """Never."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Of no interest."""


def build(identity: Identity, settings: NetworkSettings, advertise: Callable[[list[Multiaddr]], list[Multiaddr]]) -> BasicHost:
    """A host that does not listen yet. ``advertise`` makes of the listen addresses those that others
    get to know."""
    patches.apply()
    pair = identity.key_pair
    timeout = settings.dial.timeout
    host = new_host(
        key_pair=pair,
        sec_opt={NOISE: NoiseTransport(pair, noise_privkey=new_x25519_pair().private_key)},
        muxer_opt=create_yamux_muxer_option(),
        resource_manager=Gate(settings),
        psk=settings.psk.lower() if settings.psk else None,
        connection_config=ConnectionConfig(
            max_connections=settings.max_connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=settings.max_connections,
            inbound_upgrade_timeout=timeout,
            outbound_upgrade_timeout=timeout,
            dial_timeout=timeout,
        ),
        addrs_factory=advertise,
        disable_identify_address_discovery=True,
    )
    assert isinstance(host, BasicHost)
    swarm = swarm_of(host)
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.auto_connector = cast(Any, NoConnector())
    swarm._negative_peer_cache = _NegativePeerCache(ttl=0)  # a failed dial must not block the peer for a minute
    swarm.set_stream_handler(cast(Any, contain(host._swarm_stream_handler)))
    return host


def swarm_of(host: BasicHost) -> Swarm:
    return cast(Swarm, host.get_network())


def contain(handler: Callable[[Any], Awaitable[None]]) -> StreamHandler:
    """An exception that leaves a stream handler would end the program; it ends the stream instead."""

    async def contained(stream: Stream) -> None:
        try:
            await handler(stream)
        except Exception:  # the last line of defence; it is logged, and the stream is reset
            log.debug("a stream handler failed", exc_info=True)
            await stream.reset()

    return contained


# --- peers ---------------------------------------------------------------------------------------


def to_id(peer: str) -> ID:
    """Raises `Unreachable` for a text that is no peer id."""
    raw = peer_id_bytes(peer)
    if raw is None:
        raise Unreachable(f"not a peer id: {peer!r}")
    return ID(raw)


def peer_of(connection: INetConn) -> str:
    return str(connection.muxed_conn.peer_id)


def live_connections(host: BasicHost, peer: str) -> list[INetConn]:
    """The one that was heard from last comes first: after a peer's return the others may be stale."""
    raw = peer_id_bytes(peer)
    if raw is None:
        return []
    found = [c for c in swarm_of(host).connections.get(ID(raw), []) if not c.is_closed and not c.muxed_conn.is_closed]
    return sorted(found, key=last_heard, reverse=True)


def last_heard(connection: INetConn) -> float:
    """In trio's time; see `p2p.patches`."""
    return float(getattr(getattr(connection.muxed_conn, "secured_conn", None), "dim_heard", 0.0))


async def close_connection(connection: INetConn) -> None:
    try:
        await connection.close()
    except Exception:  # libp2p documents no errors here; the connection is gone in any case
        log.debug("closing a connection failed", exc_info=True)


# --- addresses -----------------------------------------------------------------------------------


def parse_address(address: str) -> tuple[str, Multiaddr]:
    """(peer id, transport address) of a multiaddr that ends in ``/p2p/{peer id}``. Raises `Unreachable`."""
    try:
        info = info_from_p2p_addr(Multiaddr(address))
    except Exception as problem:  # multiaddr raises a dozen unrelated types for bad text
        raise Unreachable(f"not an address with a peer id (/ip4/…/tcp/…/p2p/…): {address}") from problem
    peer = str(info.peer_id)
    if not is_peer_id(peer) or not dialable([address]):
        raise Unreachable(f"not the address of a node with an Ed25519 identity: {address}")
    return peer, info.addrs[0]


def dialable(addresses: Iterable[str]) -> list[Multiaddr]:
    """Those of the addresses that are well-formed, without their peer ids, loopback last."""
    found: dict[str, Multiaddr] = {}
    for text in addresses:
        try:
            address = Multiaddr(text.split("/p2p/")[0])
            address.value_for_protocol("tcp")
        except Exception:  # noqa: BLE001, S112 - as above; others' addresses may be anything
            continue
        found[str(address)] = address
    return sorted(found.values(), key=lambda a: "/ip4/127." in str(a) or "/ip6/::1" in str(a))


def interface_addresses() -> tuple[str, ...]:
    """IP addresses of this machine, loopback last. Asks the system: call it from a thread."""
    found: set[str] = set()
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address:
                found.add(entry.address)
    return tuple(sorted(found, key=lambda a: (ipaddress.ip_address(a).is_loopback, ":" in a, a)))


def expand(address: Multiaddr, interfaces: Iterable[str]) -> list[Multiaddr]:
    """A wildcard listen address as one address per interface; any other as it is."""
    text = str(address)
    for wildcard, is_six in (("/ip4/0.0.0.0/", False), ("/ip6/::/", True)):
        if text.startswith(wildcard):
            rest = text.removeprefix(wildcard)
            kind = "ip6" if is_six else "ip4"
            return [Multiaddr(f"/{kind}/{ip}/{rest}") for ip in interfaces if (":" in ip) == is_six]
    return [address]


def check_port(address: str) -> None:
    """Raises `PortInUse` if the port is taken, `NetworkError` if it cannot be bound for another reason."""
    parsed = Multiaddr(address)
    port = int(parsed.value_for_protocol("tcp") or 0)
    six = address.startswith("/ip6/")
    ip = parsed.value_for_protocol("ip6" if six else "ip4")
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((ip, port))
            probe.listen(1)
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                raise PortInUse(f"{address} is taken by another program") from None
            raise NetworkError(f"cannot listen on {address}: {problem.strerror}") from None


async def listen(host: BasicHost, addresses: Iterable[str]) -> None:
    """Binds each address or raises `PortInUse` naming the first that failed (libp2p only logs it)."""
    for address in addresses:
        check_port(address)
        maddr = Multiaddr(address)
        await swarm_of(host).listen(maddr)
        listener = swarm_of(host).listeners.get(str(maddr))
        if listener is None or not listener.get_addrs():
            raise PortInUse(f"{address} could not be bound: another program may have just taken it")


async def dial(host: BasicHost, peer: str, address: Multiaddr, timeout: float) -> None:
    """One address of a peer, whose identity is proved. Raises `Unreachable`."""
    if peer == str(host.get_id()):
        raise Unreachable("that address is this node's own")
    with trio.move_on_after(timeout):
        try:
            await swarm_of(host).dial_addr(address, to_id(peer))
        except Exception as problem:  # whatever went wrong in libp2p, the peer was not reached
            raise Unreachable(f"{peer} at {address}: {_reason(problem)}") from problem
        return
    raise Unreachable(f"{peer} at {address}: no handshake within {timeout} s (unreachable, or another swarm key)")


def _reason(problem: BaseException) -> str:
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return str(problem) or type(problem).__name__
