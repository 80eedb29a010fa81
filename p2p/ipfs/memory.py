"""The in-memory twin: stores that fetch from one another through a hub, with the contract of the real one."""

from __future__ import annotations

from collections.abc import Collection

import trio

from p2p.ipfs.api import BlockMissing
from p2p.ipfs.blocks import BlocksInMemory
from p2p.ipfs.cid import Cid
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import MayServe, Traffic


class MemoryExchange:
    """Connects stores; peers can be taken off and put back on. ``delay`` is seconds for each block fetched."""

    def __init__(self, *, delay: float = 0.0) -> None:
        self._delay = delay
        self._members: dict[str, _Member] = {}
        self._down: set[str] = set()

    def disconnect(self, peer: str) -> None:
        self._down.add(peer)

    def reconnect(self, peer: str) -> None:
        self._down.discard(peer)

    def connected(self, peer: str) -> frozenset[str]:
        """Whom a peer reaches."""
        return frozenset() if peer in self._down else frozenset(self._members) - self._down - {peer}

    def _join(self, member: _Member) -> None:
        if member.peer_id in self._members:
            raise ValueError(f"{member.peer_id} is there already")
        self._members[member.peer_id] = member

    async def _fetch(self, asker: str, cid: Cid, providers: Collection[str]) -> bytes:
        await trio.sleep(self._delay)
        reachable = self.connected(asker)
        for peer in (*providers, *sorted(reachable - set(providers))):
            if peer in reachable:
                data = await self._members[peer].serve(asker, cid)
                if data is not None:
                    return data
        raise BlockMissing(f"no provider had {cid}")


class _Member:
    """One store's side of the hub."""

    def __init__(self, peer_id: str, hub: MemoryExchange, blocks: BlocksInMemory, may_serve: MayServe | None) -> None:
        self.peer_id = peer_id
        self.traffic = Traffic()
        self._hub = hub
        self._blocks = blocks
        self._may_serve = may_serve

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        with trio.move_on_after(timeout):
            data = await self._hub._fetch(self.peer_id, cid, providers)
            self.traffic.fetched(data)
            return data
        raise BlockMissing(f"no provider had {cid} in time")

    async def serve(self, asker: str, cid: Cid) -> bytes | None:
        audiences = await self._blocks.audiences(cid) if self._may_serve is not None else frozenset[str]()
        if audiences and self._may_serve is not None and not await self._may_serve(asker, audiences):
            self.traffic.withheld_blocks += 1
            return None
        data = await self._blocks.get(cid)
        if data is not None:
            self.traffic.served([(b"", data)])
        return data


class MemoryStore(Store):
    """`ContentStore` in memory; alone, or with others on one hub."""

    def __init__(
        self,
        peer_id: str = "memory",
        hub: MemoryExchange | None = None,
        *,
        may_serve: MayServe | None = None,
        settings: StoreSettings | None = None,
    ) -> None:
        blocks = BlocksInMemory()
        member = _Member(peer_id, hub, blocks, may_serve) if hub is not None else None
        if hub is not None and member is not None:
            hub._join(member)
        self.peer_id = peer_id
        super().__init__("memory", blocks, member, settings or StoreSettings())
