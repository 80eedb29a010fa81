"""What py-libp2p's Kademlia sees of the node: instead of the host, so that nothing it is told by others gets any further.

The real host's address book has no bound and is dialled from; the DHT has one of its own. Streams are opened as everywhere else, on the
connections of the swarm, with its key and its allow-list, and end whatever happens to whoever uses them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import trio
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2p.api import PeerEvent, RemoteFault, Unreachable
from p2p.dht.patches import PROTOCOL
from p2p.dht.settings import DhtSettings
from p2p.host import dialable, to_id
from p2p.identity import is_peer_id

StreamHandler = Callable[[Any], Awaitable[None]]
_CLOSING = 1.0


class Network(Protocol):
    """What of `p2p.network.Libp2pNetwork` the DHT uses."""

    @property
    def peer_id(self) -> str: ...
    def addresses(self) -> tuple[str, ...]: ...
    def addresses_of(self, peer: str) -> tuple[str, ...]: ...
    def peers(self) -> frozenset[str]: ...
    def peer_events(self) -> trio.MemoryReceiveChannel[PeerEvent]: ...
    def add_address(self, peer: str, addresses: tuple[str, ...]) -> None: ...
    async def reach(self, peer: str, addresses: tuple[str, ...]) -> None: ...
    async def open_stream(self, peer: str, protocol: str) -> Any: ...
    def serve_streams(self, protocol: str, handler: StreamHandler) -> None: ...
    def stop_serving_streams(self, protocol: str) -> None: ...


class AddressBook:
    """Of the peers that answers named; and what the network knows."""

    def __init__(self, network: Network, settings: DhtSettings) -> None:
        self._network = network
        self._settings = settings
        self._told: OrderedDict[ID, list[Multiaddr]] = OrderedDict()

    def addrs(self, peer: ID) -> list[Multiaddr]:
        known = dialable(self._network.addresses_of(str(peer)))
        return (known or self._told.get(peer, []))[: self._settings.addresses_each]

    def add_addrs(self, peer: ID, addresses: Sequence[Multiaddr], ttl: int) -> None:
        del ttl  # the bound is on the number
        if not is_peer_id(str(peer)):
            return
        self._told.pop(peer, None)
        self._told[peer] = list(addresses)[: self._settings.addresses_each]
        if len(self._told) > self._settings.most_addresses:
            self._told.popitem(last=False)

    def peer_ids(self) -> list[ID]:
        """None to start a search from: what others told is no member yet."""
        return []

    def get_protocols(self, peer: ID) -> list[str]:
        return []

    def get_peer_record(self, peer: ID) -> None:
        return None


class DhtHost:
    """In the place of libp2p's ``IHost``."""

    def __init__(self, network: Network, settings: DhtSettings) -> None:
        self._network = network
        self._settings = settings
        self._book = AddressBook(network, settings)
        self.handler: StreamHandler | None = None
        """What Kademlia wants to serve streams with."""
        self.without: OrderedDict[str, float] = OrderedDict()
        """Peers that do not take part, and when that was seen."""

    def get_id(self) -> ID:
        return to_id(self._network.peer_id)

    def get_addrs(self) -> list[Multiaddr]:
        return dialable(self._network.addresses())[: self._settings.addresses_each]

    def get_connected_peers(self) -> list[ID]:
        return [to_id(peer) for peer in self._network.peers() if peer not in self.without]

    def get_peerstore(self) -> AddressBook:
        return self._book

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        assert protocol == PROTOCOL, "the patches come first"
        self.handler = handler

    async def new_stream(self, peer: ID, protocols: Iterable[str]) -> DhtStream:
        """Raises `Unreachable`, `RemoteFault`."""
        assert list(protocols) == [PROTOCOL]
        name = str(peer)
        with trio.move_on_after(self._settings.answer_timeout):
            try:
                await self._network.reach(name, tuple(str(address) for address in self._book.addrs(peer)))
                return DhtStream(await self._network.open_stream(name, PROTOCOL), self._settings.answer_timeout)
            except RemoteFault:
                self._note_without(name)
                raise
        raise Unreachable(f"{name} does not answer")

    def takes_part(self, peer: str, now: float) -> bool:
        """As far as is known."""
        if self.without.get(peer, float("-inf")) + self._settings.refresh > now:
            return False
        self.without.pop(peer, None)
        return True

    def _note_without(self, peer: str) -> None:
        self.without[peer] = trio.current_time()
        if len(self.without) > self._settings.most_addresses:
            self.without.popitem(last=False)


class DhtStream:
    """A stream whose every step ends in time, and which is closed or reset in any case: an open one would hold a place on its connection."""

    metric_send_channel = None

    def __init__(self, stream: Any, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        self._sound = True

    @property
    def muxed_conn(self) -> Any:
        return self._stream.muxed_conn

    async def read(self, n: int | None = None) -> bytes:
        """Empty at the end, as Kademlia's reader wants it."""
        try:
            return await self._step(self._stream.read, n)
        except StreamEOF:
            self._sound = True
            return b""

    async def write(self, data: bytes) -> None:
        await self._step(self._stream.write, data)

    async def _step(self, function: Callable[[Any], Awaitable[Any]], argument: Any) -> Any:
        sound, self._sound = self._sound, False
        with trio.fail_after(self._timeout):
            result = await function(argument)
        self._sound = sound
        return result

    async def close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSING):
            await (self._stream.close() if self._sound else self._stream.reset())

    async def reset(self) -> None:
        self._sound = False
        await self.close()
