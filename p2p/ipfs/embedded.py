"""The embedded backend: a block store on disk, and bitswap on the node's own libp2p host."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from libp2p.abc import IHost

from p2p.ipfs.blocks import BlocksOnDisk
from p2p.ipfs.exchange import FindProviders, open_exchange
from p2p.ipfs.link import Libp2pLink, OpenStream
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import MayServe
from p2p.ipfs.wire import PROTOCOL


class EmbeddedStore(Store):
    """Made by `open_embedded`."""


@asynccontextmanager
async def open_embedded(
    folder: Path,
    *,
    host: IHost | None = None,
    connected: Callable[[], Collection[str]] | None = None,
    open_stream: OpenStream | None = None,
    may_serve: MayServe | None = None,
    find_providers: FindProviders | None = None,
    settings: StoreSettings | None = None,
) -> AsyncGenerator[EmbeddedStore, None]:
    """A store under ``folder`` (made if missing; one process at a time) as long as the block lasts.

    ``host``: a running libp2p host; without one the store is local only. ``connected`` gives the ids of
    the peers that may be asked (default: all that the host is connected to), ``open_stream`` opens streams to
    them: give `Libp2pNetwork.peers` and `Libp2pNetwork.open_stream`. ``may_serve`` decides for
    each block and peer whether it is given out (default: yes). ``find_providers`` is asked who has what nobody
    near has. The host must outlive the store.
    Raises `OSError` or `sqlite3.Error` when the folder cannot be used.
    """
    settings = settings or StoreSettings()
    blocks = BlocksOnDisk(folder, settings)
    await blocks.open()
    try:
        if host is None:
            yield EmbeddedStore("embedded", blocks, None, settings)
            return
        link = Libp2pLink(host, PROTOCOL, max_message=settings.exchange.max_message, open_stream=open_stream)
        peers = connected if connected is not None else connected_to(host)
        async with open_exchange(link, blocks, settings.exchange, peers, may_serve, find_providers) as exchange:
            store = EmbeddedStore("embedded", blocks, exchange, settings, random.Random())  # noqa: S311 - an order
            store.on_kept = exchange.kept
            yield store
    finally:
        await blocks.close()


def connected_to(host: IHost) -> Callable[[], frozenset[str]]:
    """All peers that a host is connected to."""
    return lambda: frozenset(str(peer) for peer in host.get_connected_peers())
