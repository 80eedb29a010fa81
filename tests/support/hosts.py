"""libp2p hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import multiaddr
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo


@asynccontextmanager
async def open_host() -> AsyncIterator[IHost]:
    host = new_host(key_pair=create_new_key_pair())
    async with host.run([multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host
        async with trio.open_nursery() as nursery:  # the host itself leaves sockets open
            for peer in host.get_connected_peers():
                nursery.start_soon(host.disconnect, peer)


@asynccontextmanager
async def open_hosts(count: int) -> AsyncIterator[list[IHost]]:
    """Unconnected hosts."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_host()) for _ in range(count)]


async def connect(a: IHost, b: IHost) -> None:
    await a.connect(PeerInfo(b.get_id(), b.get_addrs()))


def name(host: IHost) -> str:
    return str(host.get_id())
