"""The seam between the content store and where blocks are kept, with its two sides: disk and memory."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockMissing, DiskFull, Pin
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import DiskBlocks, Kept
from p2p.ipfs.group_commit import GroupCommit
from p2p.ipfs.pins import Change, DiskPins
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Block


class Blocks(Protocol):
    """Verified blocks and pins."""

    async def has(self, cid: Cid) -> bool: ...

    async def size(self, cid: Cid) -> int | None: ...

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        """``touch``: this counts as a use of the block."""
        ...

    async def touch(self, cid: Cid) -> None:
        """The block is used now."""
        ...

    async def put(self, blocks: list[Block], *, durable: bool) -> None:
        """Hashes are the caller's business. Raises `DiskFull`."""
        ...

    async def sync(self, cids: Iterable[Cid]) -> None:
        """Blocks that are here are on the disk when this returns. Raises `BlockMissing`."""
        ...

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        """None unpins. Durable when it returns."""
        ...

    def pins(self) -> dict[str, Pin]: ...

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
        self._threads = trio.CapacityLimiter(settings.io_threads)
        self._puts = GroupCommit[Block](self._commit_blocks)
        self._changes = GroupCommit[Change](self._commit_pins)

    async def open(self) -> None:
        await trio.to_thread.run_sync(self._open, limiter=self._threads)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._pins.close, limiter=self._threads)

    async def has(self, cid: Cid) -> bool:
        return await trio.to_thread.run_sync(self._disk.has, cid, limiter=self._threads)

    async def size(self, cid: Cid) -> int | None:
        return await trio.to_thread.run_sync(self._disk.size, cid, limiter=self._threads)

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        return await trio.to_thread.run_sync(lambda: self._disk.get(cid, touch=touch), limiter=self._threads)

    async def touch(self, cid: Cid) -> None:
        await trio.to_thread.run_sync(self._disk.touch, cid, limiter=self._threads)

    async def put(self, blocks: list[Block], *, durable: bool) -> None:
        if durable:
            await self._puts.submit(blocks)
        else:
            await trio.to_thread.run_sync(lambda: self._disk.put(blocks, durable=False), limiter=self._threads)

    async def sync(self, cids: Iterable[Cid]) -> None:
        try:
            await trio.to_thread.run_sync(self._disk.sync, list(cids), limiter=self._threads)
        except FileNotFoundError as error:
            raise BlockMissing("a block vanished before it was on the disk") from error

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await self._changes.submit([(cid.text, pin)])

    def pins(self) -> dict[str, Pin]:
        return self._pins.all()

    async def inventory(self) -> AsyncGenerator[list[Kept], None]:
        for shard in await trio.to_thread.run_sync(self._disk.shards, limiter=self._threads):
            yield await trio.to_thread.run_sync(self._disk.inventory, shard, limiter=self._threads)

    async def remove(self, cids: Iterable[Cid]) -> int:
        return await trio.to_thread.run_sync(self._disk.remove, *cids, limiter=self._threads)

    def count(self) -> tuple[int, int]:
        return self._disk.blocks, self._disk.bytes

    def _open(self) -> None:
        self._disk.open()
        self._pins.open()

    async def _commit_blocks(self, blocks: list[Block]) -> None:
        await trio.to_thread.run_sync(lambda: self._disk.put(blocks, durable=True), limiter=self._threads)

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

    async def has(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        return cid.text in self._blocks

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

    async def put(self, blocks: list[Block], *, durable: bool) -> None:
        await trio.lowlevel.checkpoint()
        fresh = sum(len(block.data) for block in blocks if block.cid.text not in self._blocks)
        if fresh and self._max_bytes and self.count()[1] + fresh > self._max_bytes:
            raise DiskFull("the block store is as large as it may be")
        self._blocks.update((block.cid.text, block.data) for block in blocks)
        self._used.update((block.cid.text, trio.current_time()) for block in blocks)

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

    async def inventory(self) -> AsyncGenerator[list[Kept], None]:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        yield [Kept(cids.parse(text), len(data), now - self._used.get(text, now)) for text, data in self._blocks.items()]

    async def remove(self, cids: Iterable[Cid]) -> int:
        await trio.lowlevel.checkpoint()
        self._used = {text: at for text, at in self._used.items() if text in self._blocks}
        return sum(len(self._blocks.pop(cid.text, b"")) for cid in cids)

    def count(self) -> tuple[int, int]:
        return len(self._blocks), sum(map(len, self._blocks.values()))
