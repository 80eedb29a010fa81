"""The kubo backend: blocks and pins in a Kubo daemon, bitswap with the swarm on the node's own libp2p host.

The swarm is private and Kubo is no member of it, so blocks travel between nodes as with the embedded backend; what no member
has is asked of Kubo, which looks in its own network. docs/decisions/0014.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from libp2p.abc import IHost

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockCorrupt, BlockMissing, Collected, ContentError, StoreHealth, StoreUnavailable
from p2p.ipfs.cid import Cid
from p2p.ipfs.embedded import connected_to
from p2p.ipfs.exchange import FindProviders, open_exchange
from p2p.ipfs.kubo.blocks import KuboBlocks
from p2p.ipfs.kubo.names import KuboNames
from p2p.ipfs.kubo.pubsub import KuboPubsub
from p2p.ipfs.kubo.rpc import KuboRpc, Refused, open_rpc
from p2p.ipfs.kubo.settings import KuboSettings
from p2p.ipfs.link import Libp2pLink, OpenStream
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Exchange, Store
from p2p.ipfs.traffic import MayServe, Traffic
from p2p.ipfs.wire import PROTOCOL


class KuboExchange:
    """`p2p.ipfs.store.Exchange`: the swarm first, then Kubo's own peers."""

    def __init__(self, blocks: KuboBlocks, rpc: KuboRpc, swarm: Exchange | None) -> None:
        self._blocks = blocks
        self._rpc = rpc
        self._swarm = swarm
        self.traffic = swarm.traffic if swarm is not None else Traffic()

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        """Kubo is asked once the swarm has none, at the latest after half of the time, and has the other half. ``private``: Kubo is asked
        for what it has itself, since it would tell its network of it. Raises `BlockMissing`, `BlockCorrupt`, `StoreUnavailable`."""
        swarm = self._swarm
        if swarm is None:
            return await self._from_kubo(cid, timeout, private)
        swarm_is_over = trio.Event()
        found: list[bytes] = []
        errors: list[ContentError] = []

        async def attempt(ask: Callable[[], Awaitable[bytes]]) -> None:
            try:
                found.append(await ask())
                nursery.cancel_scope.cancel()
            except ContentError as error:
                errors.append(error)

        async def ask_swarm() -> None:
            await attempt(lambda: swarm.fetch_block(cid, providers, timeout, private=private))
            swarm_is_over.set()

        until = trio.current_time() + timeout
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_swarm)
            with trio.move_on_after(timeout / 2):
                await swarm_is_over.wait()
            await attempt(lambda: self._from_kubo(cid, max(until - trio.current_time(), timeout / 2), private))
        if found:
            return found[0]
        raise _worst(errors)

    async def _from_kubo(self, cid: Cid, timeout: float, private: bool) -> bytes:
        if self._blocks.problem:
            raise StoreUnavailable(f"{cid} is with no node of the swarm, and {self._blocks.problem}")
        data = None
        with trio.move_on_after(timeout):
            try:
                data = await self._rpc.block_get(cid, offline=private, timeout=timeout)
            except Refused:
                data = None
            except StoreUnavailable as error:
                self._blocks.lost(error)
                raise
        if data is None:
            raise BlockMissing(f"neither the swarm nor Kubo had {cid} in time")
        self.traffic.fetched(data)
        return data


def _worst(errors: list[ContentError]) -> ContentError:
    """What can be had once Kubo is back is not lost; wrong content says more than none."""
    return min(errors, key=lambda error: (not isinstance(error, StoreUnavailable), not isinstance(error, BlockCorrupt)))


class KuboStore(Store):
    """Made by `open_kubo`."""

    def __init__(self, blocks: KuboBlocks, exchange: KuboExchange, rpc: KuboRpc, settings: StoreSettings, kubo: KuboSettings) -> None:
        super().__init__("kubo", blocks, exchange, settings)
        self._uses = blocks.uses
        self._kubo_blocks = blocks
        self._rpc = rpc
        self._kubo = kubo

    def names(self, label: str) -> KuboNames:
        """For publishing under a key of the daemon's that is called ``label``."""
        return KuboNames(self._rpc, label, self._kubo.publish_timeout, lambda: self._kubo_blocks.reached)

    def pubsub(self) -> KuboPubsub:
        return KuboPubsub(self._rpc)

    async def ok(self) -> bool:
        try:
            await self._kubo_blocks.reach()
        except StoreUnavailable as error:
            self._kubo_blocks.lost(error)
        return not self._kubo_blocks.problem

    def health(self) -> StoreHealth:
        here = super().health()
        return StoreHealth(here.ok and not self._kubo_blocks.problem, self._kubo_blocks.backlog, self._kubo_blocks.problem or here.problem)

    async def collect(self, needed: AsyncIterator[str], *, down_to: int = 0, grace: float | None = None) -> Collected:
        """Kubo's own collection, of everything that neither Kubo's pins nor ``needed`` hold, nor work under way: what it has for others
        goes as well. The bound is Kubo's (``Datastore.StorageMax``). Raises `StoreUnavailable`."""
        async with self._collecting:
            try:
                await self._kubo_blocks.publish()  # pins above all
                wanted = [cids.parse(text) async for text in _valid(needed)]
                await self._kubo_blocks.hold(list(dict.fromkeys([*self._uses.roots(), *wanted])))
                before = await self._rpc.repo_stat()
                removed = await self._rpc.repo_gc(self._kubo.gc_timeout)
                after = await self._rpc.repo_stat()
            finally:
                self._kubo_blocks.release()
        freed = max(0, int(before.get("RepoSize", 0)) - int(after.get("RepoSize", 0)))
        self._state.collected_blocks += removed
        self._state.collected_bytes += freed
        return Collected(removed, freed, int(after.get("NumObjects", 0)), 0)

    async def _local(self, cid: Cid) -> bytes:
        try:
            return await super()._local(cid)
        except BlockMissing as error:
            if self._kubo_blocks.problem:
                raise StoreUnavailable(f"{cid} may be in Kubo, but {self._kubo_blocks.problem}") from error
            raise


async def _valid(needed: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    async for text in needed:
        try:
            yield cids.parse(text).text
        except BadCid:
            continue


@asynccontextmanager
async def open_kubo(
    folder: Path,
    *,
    host: IHost | None = None,
    connected: Callable[[], Collection[str]] | None = None,
    open_stream: OpenStream | None = None,
    may_serve: MayServe | None = None,
    find_providers: FindProviders | None = None,
    settings: StoreSettings | None = None,
    kubo: KuboSettings | None = None,
) -> AsyncGenerator[KuboStore, None]:
    """As `p2p.ipfs.embedded.open_embedded`, with the blocks in a Kubo daemon and a spool under ``folder``. The daemon need not be there.
    Raises `ValueError` for an address or credentials of no known form."""
    settings, kubo = settings or StoreSettings(), kubo or KuboSettings()
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(open_rpc(kubo.api, kubo.credentials, kubo.rpc))
        blocks = KuboBlocks(folder, rpc, settings, kubo)
        await blocks.open()
        stack.push_async_callback(blocks.close)
        swarm = None
        if host is not None:
            link = Libp2pLink(host, PROTOCOL, max_message=settings.exchange.max_message, open_stream=open_stream)
            peers = connected if connected is not None else connected_to(host)
            swarm = await stack.enter_async_context(open_exchange(link, blocks, settings.exchange, peers, may_serve, find_providers))
        store = KuboStore(blocks, KuboExchange(blocks, rpc, swarm), rpc, settings, kubo)
        store.on_kept = swarm.kept if swarm is not None else None
        await store.ok()
        await stack.enter_async_context(_running(blocks))
        yield store


@asynccontextmanager
async def _running(blocks: KuboBlocks) -> AsyncGenerator[None, None]:
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocks.run)
        try:
            yield
        except BaseException as raised:  # noqa: BLE001 - raised again below, where the nursery does not wrap it
            error = raised
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
