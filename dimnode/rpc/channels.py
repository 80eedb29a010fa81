"""Connections to other nodes' daemons: one channel for each peer, kept open and used again.

A channel is remade when the peer's address or either side's certificate has changed, and closed when it was not used
for a while or when there are too many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import trio

from dimnode.errors import ResourceExhausted, Unavailable
from dimnode.rpc.bridge import Bridge
from dimnode.security.certificates import CertificateStore, tls_name

Resolve = Callable[[str], str]
"""Peer id -> ``host:port`` of its daemon. Raises `Unavailable` if none is known."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    max_channels: int = 256
    """When there are more, the one unused for longest is closed; if all are in use, calls are refused."""
    idle_close: float = 300.0
    """Seconds without a call after which a channel is closed."""
    connect_timeout: float = 5.0
    """Seconds until a connection, TLS handshake included, counts as failed."""
    keepalive: float = 20.0
    """Seconds of silence after which a connection in use is pinged."""
    keepalive_timeout: float = 5.0
    """Seconds until an unanswered ping breaks the connection."""
    backoff_min: float = 0.1
    backoff_max: float = 0.5
    max_message_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    open: int
    in_use: int
    made: int
    reused: int


class PooledChannel:
    """A channel and what it was made with. `stubs` keeps generated stubs, which are costly to make."""

    __slots__ = ("calls", "channel", "key", "stubs", "used_at")

    def __init__(self, channel: grpc.aio.Channel, key: tuple[object, ...], now: float) -> None:
        self.channel = channel
        self.key = key
        self.calls = 0
        self.used_at = now
        self.stubs: dict[Any, Any] = {}

    def stub(self, kind: Callable[[Any], Any]) -> Any:
        stub = self.stubs.get(kind)
        if stub is None:
            stub = self.stubs[kind] = kind(self.channel)
        return stub


class ChannelPool:
    """Made by `open_pool`. All methods run in trio."""

    def __init__(
        self, bridge: Bridge, certificates: CertificateStore, resolve: Resolve, now: Clock, settings: ChannelSettings | None = None
    ) -> None:
        self.bridge = bridge
        self.certificates = certificates
        self.settings = settings or ChannelSettings()
        self._resolve = resolve
        self._now = now
        self._channels: OrderedDict[str, PooledChannel] = OrderedDict()
        self._retired: set[PooledChannel] = set()
        """Replaced while calls still ran on them."""
        self._locks: dict[str, trio.Lock] = {}
        self._made = 0
        self._reused = 0

    def statistics(self) -> PoolStatistics:
        kept = [*self._channels.values(), *self._retired]
        return PoolStatistics(open=len(kept), in_use=sum(c.calls > 0 for c in kept), made=self._made, reused=self._reused)

    @asynccontextmanager
    async def channel(self, peer: str, *, fresh: bool = False) -> AsyncGenerator[PooledChannel]:
        """The peer's channel, for one call. ``fresh``: exchange certificates and make a new one first. Raises
        `Unavailable`, or `ResourceExhausted` if the pool is full of channels in use."""
        pooled = await self._acquire(peer, fresh)
        pooled.calls += 1
        try:
            yield pooled
        finally:
            pooled.calls -= 1
            pooled.used_at = self._now()
            if pooled in self._retired and pooled.calls == 0:
                self._retired.discard(pooled)
                self._close_soon(pooled)

    async def _acquire(self, peer: str, fresh: bool) -> PooledChannel:
        seen = self._channels.get(peer)
        if not fresh and seen is not None and seen.key == self._key(peer):
            self._reused += 1
            self._channels.move_to_end(peer)
            return seen
        lock = self._locks.setdefault(peer, trio.Lock())
        try:
            async with lock:
                return await self._make(peer, seen, fresh)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(peer, None)

    async def _make(self, peer: str, seen: PooledChannel | None, fresh: bool) -> PooledChannel:
        now = self._channels.get(peer)
        if now is not None and now is not seen and now.key == self._key(peer):
            return now  # another caller has just made it
        if fresh:
            await self.certificates.exchange(peer)
        else:
            await self.certificates.ensure(peer)
        self._make_room(peer)
        key, credentials = self._key(peer), self.certificates.channel_credentials(peer)
        channel = await self.bridge.run(grpc.aio.secure_channel, self._resolve(peer), credentials, self._options(peer))
        self._retire(peer)
        self._made += 1
        pooled = self._channels[peer] = PooledChannel(channel, key, self._now())
        return pooled

    def _key(self, peer: str) -> tuple[object, ...]:
        """What a channel depends on: the address, our certificate and the peer's."""
        prints = tuple(c.fingerprint for c in self.certificates.certificates_of(peer))
        return (self._resolve(peer), self.certificates.own.generation, prints)

    def _options(self, peer: str) -> list[tuple[str, Any]]:
        s = self.settings
        return [
            ("grpc.ssl_target_name_override", tls_name(peer)),
            ("grpc.use_local_subchannel_pool", 1),  # a fresh channel is a fresh connection
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.keepalive_time_ms", int(s.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", int(s.keepalive_timeout * 1000)),
            ("grpc.initial_reconnect_backoff_ms", int(s.backoff_min * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(s.connect_timeout * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(s.backoff_max * 1000)),
            ("grpc.max_receive_message_length", s.max_message_bytes),
            ("grpc.max_send_message_length", -1),
        ]

    def _make_room(self, peer: str) -> None:
        if peer in self._channels or len(self._channels) < self.settings.max_channels:
            return
        idle = next((p for p, c in self._channels.items() if c.calls == 0), None)
        if idle is None:
            raise ResourceExhausted("too many connections to other nodes are in use", retry_after=1.0)
        self._retire(idle)

    def _retire(self, peer: str) -> None:
        """Takes a channel out of the pool; calls on it run to their end."""
        pooled = self._channels.pop(peer, None)
        if pooled is None:
            return
        if pooled.calls:
            self._retired.add(pooled)
        else:
            self._close_soon(pooled)

    def _close_soon(self, pooled: PooledChannel) -> None:
        def close() -> None:
            task = self.bridge.loop.create_task(pooled.channel.close())
            _closing.add(task)
            task.add_done_callback(_closing.discard)

        self.bridge.to_asyncio(close)

    def drop(self, peer: str) -> None:
        """Forget a peer's channel, because it failed or the peer has left."""
        self._retire(peer)

    async def run(self) -> None:
        """Closes idle channels. Runs until cancelled."""
        while True:
            await trio.sleep(self.settings.idle_close / 2)
            oldest = self._now() - self.settings.idle_close
            for peer in [p for p, c in self._channels.items() if c.calls == 0 and c.used_at <= oldest]:
                self._retire(peer)

    async def aclose(self) -> None:
        """Closes every channel; calls on them end with `Cancelled`."""
        pooled = [*self._channels.values(), *self._retired]
        self._channels.clear()
        self._retired.clear()
        with trio.CancelScope(shield=True):
            for one in pooled:
                await self.bridge.aio(one.channel.close())


_closing: set[Any] = set()
"""asyncio keeps only weak references to tasks."""


@asynccontextmanager
async def open_pool(
    bridge: Bridge,
    certificates: CertificateStore,
    resolve: Resolve,
    now: Clock = trio.current_time,
    settings: ChannelSettings | None = None,
) -> AsyncGenerator[ChannelPool]:
    """A pool, closed at the end of the block. ``now``: monotonic seconds."""
    pool = ChannelPool(bridge, certificates, resolve, now, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        try:
            yield pool
        finally:
            nursery.cancel_scope.cancel()
            await pool.aclose()


def resolver(addresses: Callable[[str], str | None], remote_host: Callable[[str], str | None]) -> Resolve:
    """Where a peer's daemon is dialled. ``addresses``: what its heartbeat says, ``host:port`` with the host empty (or
    a wildcard) for "where you reached me"; ``remote_host``: where that was."""

    def resolve(peer: str) -> str:
        address = addresses(peer)
        if not address:
            raise Unavailable("no address of the node's daemon is known")
        host, _, port = address.rpartition(":")
        if host in ("", "0.0.0.0", "[::]", "::"):  # noqa: S104 - compared, not bound
            found = remote_host(peer)
            if found is None:
                raise Unavailable("no address of the node is known", hint="It is not connected.")
            host = f"[{found}]" if ":" in found else found
        return f"{host}:{port}"

    return resolve
