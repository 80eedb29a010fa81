"""A machine's disk in a simulation: what was synced survives a crash, of the rest some may, in the order of the writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import trio

from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from p2p.api import Network, NetworkError, RemoteFault
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockMissing, DiskFull, Pin
from p2p.ipfs.audiences import AudiencesInMemory
from p2p.ipfs.blocks import BlocksInMemory
from p2p.ipfs.cid import Cid
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import MayServe, Traffic
from p2p.ipfs.unixfs import Block

BLOCK = "simulation/block"
"""Asks a peer for a block, in place of bitswap."""


@dataclass(slots=True)
class SimulatedDisk:
    """``sync``: least and most seconds of an fsync."""

    rng: random.Random
    sync: tuple[float, float] = (0.002, 0.02)
    journal: MemoryDisk = field(default_factory=MemoryDisk)
    blocks: dict[str, bytes] = field(default_factory=dict[str, bytes])
    pins: dict[str, Pin] = field(default_factory=dict[str, Pin])
    audiences: AudiencesInMemory = field(default_factory=AudiencesInMemory)
    busy_until: float = 0.0

    @property
    def full(self) -> bool:
        return self.journal.full

    @full.setter
    def full(self, full: bool) -> None:
        self.journal.full = full

    async def synced(self) -> None:
        """One write after the other."""
        self.busy_until = max(self.busy_until + 1e-6, trio.current_time() + self.rng.uniform(*self.sync))
        await trio.sleep_until(self.busy_until)


class SimulatedJournal(MemoryJournal):
    """`MemoryJournal` on such a disk: each write takes its own time."""

    def __init__(self, disk: SimulatedDisk, wall: Callable[[], float]) -> None:
        self._device = disk
        super().__init__(disk.journal, wall=wall)

    @property
    def sync(self) -> float:  # type: ignore[override]
        return self._device.rng.uniform(*self._device.sync)

    @sync.setter
    def sync(self, seconds: float) -> None:
        """The disk's own matter."""

    def lose_power(self) -> None:
        """Of the writes under way the first few are on the platter, the others are not."""
        self._gone = True
        for write in list(self._line)[: self._device.rng.randint(0, len(self._line))]:
            if not self.disk.full:
                write.op()


class SimulatedBlocks(BlocksInMemory):
    """Blocks that were not asked to be durable are gone after a crash, by chance."""

    def __init__(self, disk: SimulatedDisk) -> None:
        super().__init__()
        self._disk = disk
        self._blocks.update(disk.blocks)
        self._pins.update(disk.pins)
        self._audiences = disk.audiences

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        if all(b.cid.text in self._blocks for b in blocks) and not durable:
            return
        if self._disk.full:
            raise DiskFull("the disk is full")
        if durable:
            await self._disk.synced()
        await super().put(blocks, durable=durable, audience=audience)
        if durable or self._disk.rng.random() < 0.5:
            self._disk.blocks.update((b.cid.text, b.data) for b in blocks)

    async def sync(self, cids: Iterable[Cid]) -> None:
        await self._disk.synced()
        for cid in cids:
            if cid.text not in self._blocks:
                raise BlockMissing(f"{cid} is not here")
            self._disk.blocks[cid.text] = self._blocks[cid.text]

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await self._disk.synced()
        await super().pin(cid, pin)
        self._disk.pins = dict(self._pins)


class NetworkExchange:
    """`p2p.ipfs.store.Exchange` over requests, so that links and their faults count."""

    def __init__(self, network: Network, blocks: SimulatedBlocks, may_serve: MayServe) -> None:
        self._may_serve = may_serve
        self.traffic = Traffic()
        self._network = network
        self._blocks = blocks
        network.serve(BLOCK, self._serve)

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        peers = self._network.peers()
        with trio.move_on_after(timeout):
            for peer in (*providers, *sorted(peers - set(providers))):
                if peer in peers:
                    try:
                        return await self._network.request(peer, BLOCK, cid.text.encode(), timeout=min(2.0, timeout))
                    except NetworkError:
                        continue
        raise BlockMissing(f"no provider had {cid}")

    async def _serve(self, peer: str, data: bytes) -> bytes:
        found = self._blocks._blocks.get(data.decode())
        audiences = await self._blocks.audiences(cids.parse(data.decode()))
        if audiences and not await self._may_serve(peer, audiences):
            found = None
        if found is None:
            raise RemoteFault("NOT_FOUND", "no such block")
        return found


class SimulatedStore(Store):
    """`ContentStore` of a node."""

    def __init__(self, network: Network, disk: SimulatedDisk, may_serve: MayServe) -> None:
        blocks = SimulatedBlocks(disk)
        super().__init__("memory", blocks, NetworkExchange(network, blocks, may_serve), StoreSettings())
