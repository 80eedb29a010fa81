"""One client's channels: one for each address in use, bounded in number, closed when nobody needs them any more."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from dimnode.errors import Cancelled, DimError, ResourceExhausted, Unavailable
from dimnode.rpc.server import is_loopback


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM. ``ca`` None trusts the system's authorities; certificate and key identify this client."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None
    """The name that the server's certificate must hold, if it is not the one that is dialled."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    connect_timeout: float = 2.0
    """Seconds until a server that says nothing counts as gone."""
    max_channels: int = 8
    """When there are more, the one unused for longest is closed; if all are in use, no further address is dialled."""
    max_message_bytes: int = 256 * 1024 * 1024
    tls: ClientTls | None = None


class Link:
    """A channel and what is known of it. Its fields change under the lock of its `Links` only."""

    __slots__ = ("address", "asked", "busy_since", "calls", "channel", "greeted", "heard_at", "leaving", "lost", "strikes", "stub")

    def __init__(self, address: str, channel: grpc.Channel, stub: Any) -> None:
        self.address = address
        self.channel = channel
        self.stub = stub
        self.calls = 0
        self.busy_since = -math.inf
        """Since when there are calls."""
        self.heard_at = -math.inf
        """When anything last came from there."""
        self.greeted = False
        """Whether we know who answers there."""
        self.asked: list[Callable[[Link, DimError | None], None]] | None = None
        """Who waits for the answer to the greeting that is under way."""
        self.strikes = 0
        """Greetings in a row without an answer."""
        self.leaving = False
        """To be closed when its last call ends."""
        self.lost: DimError | None = None
        """Why it is closed, if it is."""


class Links:
    """Thread-safe. gRPC's close ends a channel's calls and waits until their callbacks have run: it is never called with
    the lock held, nor from such a callback."""

    def __init__(self, make_stub: Callable[[grpc.Channel], Any], settings: LinkSettings) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self._make_stub = make_stub
        self._links: OrderedDict[str, Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._links)

    def all(self) -> tuple[Link, ...]:
        with self.lock:
            return tuple(self._links.values())

    def get(self, address: str) -> Link:
        """The link to an address, made if there is none; nothing is dialled yet. Raises `Cancelled` after `close`,
        `ResourceExhausted` if all channels are in use."""
        replaced: list[Link] = []
        with self.lock:
            self.check_open()
            link = self._links.get(address)
            if link is None:
                replaced = self._make_room()
                channel = self._open(address)
                link = self._links[address] = Link(address, channel, self._make_stub(channel))
            self._links.move_to_end(address)
        for old in replaced:
            old.channel.close()
        return link

    def check_open(self) -> None:
        if self.closed.is_set():
            raise client_closed()

    @contextmanager
    def use(self, link: Link) -> Generator[None]:
        """For the time of one call."""
        with self.lock:
            if not link.calls:
                link.busy_since = time.monotonic()
            link.calls += 1
        try:
            yield
        finally:
            with self.lock:
                link.calls -= 1
                idle = link.leaving and not link.calls
            if idle:
                self._drop(link)

    def let_go(self, known: Callable[[str], bool]) -> None:
        """Close what leads to addresses that are not known any more, when its calls have ended."""
        with self.lock:
            for link in self._links.values():
                link.leaving = not known(link.address)
            idle = [link for link in self._links.values() if link.leaving and not link.calls and link.asked is None]
        for link in idle:
            self._drop(link)

    def lose(self, link: Link, reason: DimError) -> None:
        """Close it now; its calls end, and find ``reason`` in `Link.lost`."""
        self._drop(link, reason)

    def close(self) -> None:
        self.closed.set()
        for link in self.all():
            self.lose(link, client_closed())

    def _drop(self, link: Link, reason: DimError | None = None) -> None:
        with self.lock:
            link.lost = link.lost or reason or _let_go()
            if self._links.get(link.address) is link:
                del self._links[link.address]
        link.channel.close()

    def _make_room(self) -> list[Link]:
        """Takes out who has to go; to be closed without the lock."""
        out: list[Link] = []
        while len(self._links) >= self.settings.max_channels:
            idle = next((link for link in self._links.values() if not link.calls and link.asked is None), None)
            if idle is None:
                raise ResourceExhausted("too many connections of this client are in use")
            idle.lost = _let_go()
            out.append(self._links.pop(idle.address))
        return out

    def _open(self, address: str) -> grpc.Channel:
        wait = int(self.settings.connect_timeout * 1000)
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.min_reconnect_backoff_ms", wait),
            ("grpc.use_local_subchannel_pool", 1),  # a fresh channel is a fresh connection
        ]
        if is_loopback(address):
            options.append(("grpc.enable_http_proxy", 0))
        tls = self.settings.tls
        if tls is None or address.startswith("unix:"):
            return grpc.insecure_channel(address, options)
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate), options)


def _let_go() -> DimError:
    return Unavailable("the connection was not needed any more")


def client_closed() -> Cancelled:
    return Cancelled("the client was closed")
