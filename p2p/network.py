"""The real network: `p2p.api.Network` on py-libp2p."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from p2p import health, mdns
from p2p import host as hosts
from p2p.api import (
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
from p2p.client import RequestClient
from p2p.discovery import Dialer, DialPlan, dial_any
from p2p.gossip import Gossip, make_pubsub
from p2p.groups import collapse
from p2p.identity import Identity, is_peer_id
from p2p.queues import DropOldest
from p2p.server import Methods, RequestServer
from p2p.settings import NetworkSettings, mdns_service
from p2p.tunnels import PROTOCOL as TUNNEL
from p2p.tunnels import Tunnels

log = logging.getLogger(__name__)
REQUEST = "/dim/request/1"
REFRESH = 60.0
"""Seconds between looks at the machine's interfaces."""


class Libp2pNetwork:
    """See `p2p.api.Network`. Made by `open_network`.

    ``host`` and ``nursery`` are for the IPFS layer, which runs bitswap on the same libp2p host; tasks in the
    nursery are cancelled when the network closes.
    """

    def __init__(self, identity: Identity, settings: NetworkSettings, interfaces: tuple[str, ...]) -> None:
        self.settings = settings
        self._identity = identity
        self._interfaces = interfaces
        self._addresses: tuple[str, ...] = ()
        """As `addresses` told them last: they are asked for with every heartbeat, and taking them together is slow."""
        self._peers: set[str] = set()
        self._events: list[DropOldest[PeerEvent]] = []
        self.host: BasicHost = hosts.build(identity, settings, self._advertised)
        self.pubsub, self.mesh, judge = make_pubsub(self.host, settings.gossip)
        self._nursery: trio.Nursery | None = None
        self._gossip = Gossip(self.pubsub, judge, settings.gossip, self._start)
        plan = DialPlan(settings.dial, random.Random())  # noqa: S311 - jitter
        self._dialer = Dialer(plan, self._dial, self.peers, self._start)
        self._methods = Methods(settings.requests)
        self._server = RequestServer(self._methods, settings.requests)
        self._client = RequestClient(self._open_request_stream, settings.requests, self._start)
        self._tunnels = Tunnels(settings.tunnels, self.open_stream, self._start)

    @property
    def nursery(self) -> trio.Nursery:
        assert self._nursery is not None, "the network is not open"
        return self._nursery

    @property
    def peer_id(self) -> str:
        return self._identity.peer_id

    def _start(self, function: Callable[..., Any], *args: Any) -> None:
        self.nursery.start_soon(function, *args)

    # --- addresses and peers

    def _advertised(self, bound: list[Multiaddr]) -> list[Multiaddr]:
        if self.settings.announce:
            return [Multiaddr(address.split("/p2p/")[0]) for address in self.settings.announce]
        return [address for each in bound for address in hosts.expand(each, self._interfaces)]

    def addresses(self) -> tuple[str, ...]:
        if not self._addresses:
            self._addresses = tuple(dict.fromkeys(str(address) for address in self.host.get_addrs()))
        return self._addresses

    def peers(self) -> frozenset[str]:
        return frozenset(self._peers)

    def remote_host(self, peer: str) -> str | None:
        for connection in hosts.live_connections(self.host, peer):
            if (remote := cast(Any, connection.muxed_conn).get_remote_address()) is not None:
                return str(remote[0])
        return None

    async def connect(self, address: str) -> str:
        peer, _ = hosts.parse_address(address)
        if peer == self.peer_id:
            raise Unreachable("that address is this node's own")
        self._dialer.mention(peer, [address])
        await self._dialer.connect(peer)
        return peer

    def add_address(self, peer: str, addresses: tuple[str, ...]) -> None:
        if peer != self.peer_id and is_peer_id(peer):
            self._dialer.mention(peer, addresses)

    def addresses_of(self, peer: str) -> tuple[str, ...]:
        """What is known of a peer's addresses."""
        return self._dialer.addresses(peer)

    async def reach(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Connects, if need be by addresses that somebody else named: they are tried and not remembered. Raises `Unreachable`."""
        if hosts.live_connections(self.host, peer):
            return
        if self._dialer.addresses(peer) or not addresses:
            await self._dialer.connect(peer)
        else:
            await self._dial(peer, addresses)

    async def disconnect(self, peer: str) -> None:
        async with trio.open_nursery() as nursery:
            for connection in hosts.live_connections(self.host, peer):
                nursery.start_soon(hosts.close_connection, connection)

    async def _dial(self, peer: str, addresses: tuple[str, ...]) -> None:
        known = {str(address): address for address in hosts.dialable(addresses)}

        async def one(text: str) -> None:
            await hosts.dial(self.host, peer, known[text], self.settings.dial.timeout)

        await dial_any(known, one, self.settings.dial.stagger)
        self._note(peer)

    def _note(self, peer: str) -> None:
        """Compares what is known of a peer with what is so, and tells the difference."""
        connected = bool(hosts.live_connections(self.host, peer))
        if connected == (peer in self._peers):
            return
        (self._peers.add if connected else self._peers.discard)(peer)
        self._events = [queue for queue in self._events if queue.put(PeerEvent(peer, connected))]
        if not connected:
            self._dialer.lost(peer)

    def peer_events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        queue = DropOldest[PeerEvent](self.settings.peer_events)
        self._events.append(queue)
        return queue.reader()

    def on_connected(self, connection: INetConn) -> None:
        self._note(hosts.peer_of(connection))
        self._start(health.watch, connection, self.settings.health)

    def on_disconnected(self, connection: INetConn) -> None:
        self._note(hosts.peer_of(connection))
        self.pubsub.tend()

    # --- gossip

    async def publish(self, topic: str, data: bytes) -> None:
        await self._gossip.publish(topic, data)

    def subscribe(self, topic: str, validator: Validator, capacity: int = 1024) -> trio.MemoryReceiveChannel[GossipMessage]:
        return self._gossip.subscribe(topic, validator, capacity)

    # --- streams

    async def open_stream(self, peer: str, protocol: str) -> INetStream:
        """A libp2p stream on the liveliest connection, dialled if there is none. Raises `Unreachable`;
        `RemoteFault` (UNIMPLEMENTED) if the peer does not speak the protocol."""
        if not hosts.live_connections(self.host, peer):
            hosts.to_id(peer)
            await self._dialer.connect(peer)
        connections = hosts.live_connections(self.host, peer)
        if not connections:
            raise Unreachable(f"{peer} disconnected")
        stream = None
        agreed = False
        try:
            with trio.fail_after(self.settings.requests.open_timeout):
                stream = await connections[0].new_stream()
                stream.set_protocol(await MultiselectClient().select_one_of([TProtocol(protocol)], MultiselectCommunicator(stream), 60))
            agreed = True
            return stream
        except ProtocolNotSupportedError:
            raise RemoteFault("UNIMPLEMENTED", f"the peer does not offer {protocol}") from None
        except trio.TooSlowError:
            raise Unreachable(f"{peer} does not answer") from None
        except Exception as problem:
            if "not supported" in str(problem):
                raise RemoteFault("UNIMPLEMENTED", f"the peer does not offer {protocol}") from None
            raise Unreachable(f"the connection to {peer} broke") from problem
        finally:
            if stream is not None and not agreed:
                self._start(stream.reset)

    def serve_streams(self, protocol: str, handler: hosts.StreamHandler) -> None:
        """Streams of others, each in a task of its own; an exception resets the stream."""
        self.host.set_stream_handler(TProtocol(protocol), cast(Any, hosts.contain(handler)))

    def stop_serving_streams(self, protocol: str) -> None:
        self.host.remove_stream_handler(TProtocol(protocol))

    async def _open_request_stream(self, peer: str) -> Any:
        return await self.open_stream(peer, REQUEST)

    async def _serve_requests(self, stream: hosts.Stream) -> None:
        try:
            await self._server.serve(str(stream.muxed_conn.peer_id), stream)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await stream.reset()

    async def request(self, peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
        if peer == self.peer_id:
            with trio.move_on_after(timeout):
                return await self._methods.call(peer, method, data)
            raise RequestTimeout(f"no answer to {method} within {timeout} s")
        return await self._client.request(peer, method, data, timeout)

    def serve(self, method: str, handler: Handler, concurrency: int = 64) -> None:
        self._methods.serve(method, handler, concurrency)

    async def open_tunnel(self, peer: str, name: str, *, timeout: float) -> trio.abc.HalfCloseableStream:
        return await self._tunnels.open(peer, name, timeout)

    def serve_tunnel(self, name: str, handler: TunnelHandler) -> None:
        accept = hosts.contain(self._tunnels.handler_of(name, handler))
        self.host.set_stream_handler(TProtocol(TUNNEL + name), cast(Any, accept))

    def statistics(self) -> NetworkStatistics:
        gossip = self._gossip.counters
        return NetworkStatistics(
            connected=len(self._peers),
            published=gossip.published,
            delivered=gossip.delivered,
            refused=gossip.refused + gossip.forged,
            dropped=self._gossip.dropped,
            requests=self._client.requests,
            request_failures=self._client.failures,
        )

    # --- life

    async def run(self, nursery: trio.Nursery) -> None:
        """Starts everything in the nursery; the host's services run already."""
        self._nursery = nursery
        hosts.swarm_of(self.host).register_notifee(Events(self))
        self.host.set_stream_handler(TProtocol(REQUEST), cast(Any, hosts.contain(self._serve_requests)))
        await hosts.listen(self.host, self.settings.listen)
        for address in self.settings.bootstrap:
            peer, _ = hosts.parse_address(address)
            if peer != self.peer_id:
                self._dialer.mention(peer, [address], bootstrap=True)
        nursery.start_soon(self._dialer.run)
        nursery.start_soon(self._gossip.tend)
        nursery.start_soon(self._refresh)
        if self.settings.mdns.enabled:
            nursery.start_soon(self._run_mdns)

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(REFRESH)
            self._interfaces = await trio.to_thread.run_sync(hosts.interface_addresses)
            self._addresses = ()

    async def _run_mdns(self) -> None:
        addresses = self.addresses()
        port = int(Multiaddr(addresses[0]).value_for_protocol("tcp") or 1) if addresses else 1
        await mdns.run(mdns_service(self.settings.swarm), port, addresses, self._found, self.settings.mdns)

    def _found(self, addresses: tuple[str, ...]) -> None:
        """What mDNS says is a hint: the peer proves its identity when it is dialled."""
        for address in addresses:
            try:
                peer, _ = hosts.parse_address(address)
            except Unreachable:
                continue
            if peer != self.peer_id and not self.nursery.cancel_scope.cancel_called:
                self._dialer.mention(peer, [address], wanted=True)

    async def close(self) -> None:
        """Lets tunnels flush and tells peers, at most `NetworkSettings.drain` seconds."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.settings.drain):
            await self._tunnels.wait_settled()
            async with trio.open_nursery() as nursery:
                for peer in self._peers:
                    for connection in hosts.live_connections(self.host, peer):
                        nursery.start_soon(hosts.close_connection, connection)
        for queue in self._events:
            queue.close()


class Events(INotifee):
    """libp2p's notifications, handed on."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self._network = network

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._network.on_connected(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._network.on_disconnected(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Of no interest."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Of no interest."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Of no interest."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Of no interest."""


@asynccontextmanager
async def open_network(*, identity: Identity, settings: NetworkSettings | None = None) -> AsyncGenerator[Libp2pNetwork]:
    """A node's network while the context lasts. Raises `PortInUse`, `Unreachable` (a bad bootstrap address)."""
    settings = settings or NetworkSettings()
    interfaces = await trio.to_thread.run_sync(hosts.interface_addresses)
    network = Libp2pNetwork(identity, settings, interfaces)
    with collapse():
        async with (
            network.host.run([]),
            background_trio_service(network.pubsub),
            background_trio_service(network.mesh),
            trio.open_nursery() as nursery,
        ):
            try:
                await network.run(nursery)
                yield network
            finally:
                await network.close()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + settings.drain):
                    await network.host.close()
