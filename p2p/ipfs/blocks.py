"""The seam between the content store and where blocks are kept, with its two sides: disk and memory."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockMissing, DiskFull, Pin
from p2p.ipfs.audiences import AudiencesInMemory, DiskAudiences
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import DiskBlocks, Kept
from p2p.ipfs.group_commit import GroupCommit
from p2p.ipfs.pins import Change, DiskPins
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.threads import Together
from p2p.ipfs.unixfs import Block

SOFT_BATCH = 32
"""Writers of blocks that need not be durable yet whose blocks go together."""


@dataclass(frozen=True, slots=True)
class Found:
    """A block that is here."""

    size: int
    audiences: frozenset[str]
    """Empty: everybody."""


class Blocks(Protocol):
    """Verified blocks and pins."""

    async def has(self, cid: Cid) -> bool: ...

    async def adopt(self, blocks: Sequence[Block], audience: str) -> list[Block]:
        """Those that are here are for this audience as well, unless they are everybody's (none: they stay whose they are). Returns the
        others. Raises `DiskFull`."""
        ...

    async def size(self, cid: Cid) -> int | None: ...

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        """``touch``: this counts as a use of the block."""
        ...

    async def touch(self, cid: Cid) -> None:
        """The block is used now."""
        ...

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        """Hashes are the caller's business. ``audience``: whom they are for (empty: everybody, from now on); what is here and
        everybody's stays so. Raises `DiskFull`."""
        ...

    async def audiences(self, cid: Cid) -> frozenset[str]:
        """Whom a block is for; empty: everybody."""
        ...

    async def look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        """Those that are here, with whom they are for."""
        ...

    async def share(self, cid: Cid, audience: str) -> None:
        """A block that is not everybody's is for this audience as well."""
        ...

    async def open_to_all(self, cids: Collection[Cid]) -> None: ...

    async def rename_audience(self, old: str, new: str) -> None: ...

    async def forget_audiences(self, names: Collection[str]) -> None:
        """A block without any audience is everybody's: so the last one of a block stays."""
        ...

    async def sync(self, cids: Iterable[Cid]) -> None:
        """Blocks that are here are on the disk when this returns. Raises `BlockMissing`."""
        ...

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        """None unpins. Durable when it returns."""
        ...

    def pins(self) -> dict[str, Pin]: ...

    def pin_of(self, cid: Cid) -> Pin | None: ...

    def inventory(self) -> AsyncIterator[list[Kept]]:
        """Every block that is here, page by page."""
        ...

    async def remove(self, cids: Iterable[Cid]) -> int:
        """Returns the bytes that are free now. Whether a block may go is the caller's business."""
        ...

    def count(self) -> tuple[int, int]:
        """(blocks, bytes)."""
        ...


class BlocksOnDisk:
    """`Blocks` under one folder; open it once per process."""

    def __init__(self, folder: Path, settings: StoreSettings) -> None:
        self._folder = folder
        self._disk = DiskBlocks(
            folder,
            reserve_bytes=settings.reserve_bytes,
            synced_memory=settings.synced_memory,
            max_bytes=settings.max_bytes,
            touch_after=min(settings.touch_after, settings.grace / 2),
        )
        self._pins = DiskPins(folder / "pins.sqlite")
        self._audiences = DiskAudiences(folder / "audiences.sqlite")
        self._threads = trio.CapacityLimiter(settings.io_threads)
        self._reads = Together(self._threads, lanes=settings.io_lanes, most=settings.io_together)
        self._looks = Together(self._threads, lanes=1, most=settings.io_together)
        """By themselves, since they wait for changes of audiences."""
        self._puts = GroupCommit[Block](self._commit_blocks)
        self._soft_puts = GroupCommit[tuple[Block, str]](self._commit_soft, max_batch=SOFT_BATCH)
        self._changes = GroupCommit[Change](self._commit_pins)

    async def open(self) -> None:
        await trio.to_thread.run_sync(self._open, limiter=self._threads)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._pins.close, limiter=self._threads)
            await trio.to_thread.run_sync(self._audiences.close, limiter=self._threads)

    async def has(self, cid: Cid) -> bool:
        return await self._reads.run(lambda: self._disk.has(cid))

    async def adopt(self, blocks: Sequence[Block], audience: str) -> list[Block]:
        try:
            return await self._looks.run(lambda: self._adopt(blocks, audience))
        except sqlite3.OperationalError as error:
            raise DiskFull("whom blocks are for cannot be written") from error

    async def size(self, cid: Cid) -> int | None:
        return await self._reads.run(lambda: self._disk.size(cid))

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        return await self._reads.run(lambda: self._disk.get(cid, touch=touch))

    async def touch(self, cid: Cid) -> None:
        await self._reads.run(lambda: self._disk.touch(cid))

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        """The audience is written before the blocks: what is not known to be everybody's is never given to everybody."""
        if durable:
            await self._noting(lambda: self._note([(block.cid, audience) for block in blocks], flush=True))
            await self._puts.submit(blocks)
        else:
            await self._soft_puts.submit([(block, audience) for block in blocks])

    async def audiences(self, cid: Cid) -> frozenset[str]:
        return await self._looks.run(lambda: self._audiences.of(cid))

    async def look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        return await self._looks.run(lambda: self._look(cids))

    async def share(self, cid: Cid, audience: str) -> None:
        await self._noting(lambda: self._audiences.share([(cid, audience)]))

    async def open_to_all(self, cids: Collection[Cid]) -> None:
        await self._noting(lambda: self._audiences.forget(cids))

    async def rename_audience(self, old: str, new: str) -> None:
        await self._noting(lambda: self._audiences.rename(old, new))

    async def forget_audiences(self, names: Collection[str]) -> None:
        await self._noting(lambda: self._audiences.drop(names))

    async def sync(self, cids: Iterable[Cid]) -> None:
        try:
            await self._noting(lambda: self._sync(list(cids)))
        except FileNotFoundError as error:
            raise BlockMissing("a block vanished before it was on the disk") from error

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await self._changes.submit([(cid.text, pin)])

    def pins(self) -> dict[str, Pin]:
        return self._pins.all()

    def pin_of(self, cid: Cid) -> Pin | None:
        return self._pins.get(cid.text)

    async def inventory(self) -> AsyncGenerator[list[Kept], None]:
        for shard in await trio.to_thread.run_sync(self._disk.shards, limiter=self._threads):
            yield await trio.to_thread.run_sync(self._disk.inventory, shard, limiter=self._threads)

    async def remove(self, cids: Iterable[Cid]) -> int:
        gone = list(cids)
        freed = await self.move_out(gone)
        await self.open_to_all(gone)
        return freed

    async def move_out(self, cids: Iterable[Cid]) -> int:
        """As `remove`, of blocks that are kept elsewhere from now on: their audiences stay known."""
        return await trio.to_thread.run_sync(self._disk.remove, *cids, limiter=self._threads)

    def count(self) -> tuple[int, int]:
        return self._disk.blocks, self._disk.bytes

    def _open(self) -> None:
        self._disk.open()
        self._pins.open()
        self._audiences.open()

    def _look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        sizes = {cid: size for cid in cids if (size := self._disk.size(cid)) is not None}
        audiences = self._audiences.of_each(sizes)
        return {cid: Found(size, audiences[cid]) for cid, size in sizes.items()}

    def _adopt(self, blocks: Sequence[Block], audience: str) -> list[Block]:
        here = {block.cid for block in blocks if self._disk.size(block.cid) == len(block.data)}  # after a power cut a file may be empty
        if audience:
            self._audiences.share([(cid, audience) for cid in here])
        return [block for block in blocks if block.cid not in here]

    def _note(self, pairs: Sequence[tuple[Cid, str]], *, flush: bool) -> None:
        """(block, audience). What is also put for everybody is everybody's in the end: so that comes last."""
        private = [(cid, audience) for cid, audience in pairs if audience]
        here = {cid for cid, _ in private if self._disk.has(cid)}
        self._audiences.share([pair for pair in private if pair[0] in here])
        self._audiences.add([pair for pair in private if pair[0] not in here])
        self._audiences.forget([cid for cid, audience in pairs if not audience])
        if flush and private:
            self._audiences.flush()

    def _note_and_put(self, puts: list[tuple[Block, str]]) -> None:
        self._note([(block.cid, audience) for block, audience in puts], flush=False)
        self._disk.put([block for block, _ in puts], durable=False)

    def _sync(self, cids: list[Cid]) -> None:
        self._audiences.flush()
        self._disk.sync(cids)

    async def _noting(self, change: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(change, limiter=self._threads)
        except sqlite3.OperationalError as error:
            raise DiskFull("whom blocks are for cannot be written") from error

    async def _commit_blocks(self, blocks: list[Block]) -> None:
        await trio.to_thread.run_sync(lambda: self._disk.put(blocks, durable=True), limiter=self._threads)

    async def _commit_soft(self, puts: list[tuple[Block, str]]) -> None:
        try:
            await trio.to_thread.run_sync(self._note_and_put, puts, limiter=self._threads)
        except sqlite3.OperationalError as error:
            raise DiskFull("whom blocks are for cannot be written") from error

    async def _commit_pins(self, changes: list[Change]) -> None:
        try:
            await trio.to_thread.run_sync(self._pins.apply, changes, limiter=self._threads)
        except sqlite3.OperationalError as error:
            raise DiskFull("pins cannot be written") from error


class BlocksInMemory:
    """`Blocks` in a dictionary, for tests and simulation."""

    def __init__(self, *, max_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._blocks: dict[str, bytes] = {}
        self._used: dict[str, float] = {}
        self._pins: dict[str, Pin] = {}
        self._audiences = AudiencesInMemory()

    async def has(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        return cid.text in self._blocks

    async def adopt(self, blocks: Sequence[Block], audience: str) -> list[Block]:
        await trio.lowlevel.checkpoint()
        if audience:
            self._audiences.share([(block.cid, audience) for block in blocks if block.cid.text in self._blocks])
        return [block for block in blocks if block.cid.text not in self._blocks]

    async def size(self, cid: Cid) -> int | None:
        await trio.lowlevel.checkpoint()
        return len(self._blocks[cid.text]) if cid.text in self._blocks else None

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        if touch:
            await self.touch(cid)
        else:
            await trio.lowlevel.checkpoint()
        return self._blocks.get(cid.text)

    async def touch(self, cid: Cid) -> None:
        await trio.lowlevel.checkpoint()
        if cid.text in self._blocks:
            self._used[cid.text] = trio.current_time()

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        await trio.lowlevel.checkpoint()
        if audience:
            self._audiences.share([(b.cid, audience) for b in blocks])
            self._audiences.add([(b.cid, audience) for b in blocks if b.cid.text not in self._blocks])
        else:
            self._audiences.forget([b.cid for b in blocks])
        fresh = sum(len(block.data) for block in blocks if block.cid.text not in self._blocks)
        if fresh and self._max_bytes and self.count()[1] + fresh > self._max_bytes:
            raise DiskFull("the block store is as large as it may be")
        self._blocks.update((block.cid.text, block.data) for block in blocks)
        self._used.update((block.cid.text, trio.current_time()) for block in blocks)

    async def audiences(self, cid: Cid) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        return self._audiences.of(cid)

    async def look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        await trio.lowlevel.checkpoint()
        return {cid: Found(len(self._blocks[cid.text]), self._audiences.of(cid)) for cid in cids if cid.text in self._blocks}

    async def share(self, cid: Cid, audience: str) -> None:
        await trio.lowlevel.checkpoint()
        self._audiences.share([(cid, audience)])

    async def open_to_all(self, cids: Collection[Cid]) -> None:
        await trio.lowlevel.checkpoint()
        self._audiences.forget(cids)

    async def rename_audience(self, old: str, new: str) -> None:
        await trio.lowlevel.checkpoint()
        self._audiences.rename(old, new)

    async def forget_audiences(self, names: Collection[str]) -> None:
        await trio.lowlevel.checkpoint()
        self._audiences.drop(names)

    async def sync(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await trio.lowlevel.checkpoint()
        if pin is None:
            self._pins.pop(cid.text, None)
        else:
            self._pins[cid.text] = pin

    def pins(self) -> dict[str, Pin]:
        return dict(self._pins)

    def pin_of(self, cid: Cid) -> Pin | None:
        return self._pins.get(cid.text)

    async def inventory(self) -> AsyncGenerator[list[Kept], None]:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        yield [Kept(cids.parse(text), len(data), now - self._used.get(text, now)) for text, data in self._blocks.items()]

    async def remove(self, cids: Iterable[Cid]) -> int:
        await trio.lowlevel.checkpoint()
        cids = list(cids)
        self._audiences.forget(cids)
        self._used = {text: at for text, at in self._used.items() if text in self._blocks}
        return sum(len(self._blocks.pop(cid.text, b"")) for cid in cids)

    def count(self) -> tuple[int, int]:
        return len(self._blocks), sum(map(len, self._blocks.values()))
