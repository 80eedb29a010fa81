"""The seam between the content store and where blocks are kept, with its two sides: disk and memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import trio

from p2p.ipfs.api import BlockMissing, DiskFull
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import DiskBlocks
from p2p.ipfs.group_commit import GroupCommit
from p2p.ipfs.pins import Change, DiskPins
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Block


class Blocks(Protocol):
    """Verified blocks and pins."""

    async def has(self, cid: Cid) -> bool: ...

    async def size(self, cid: Cid) -> int | None: ...

    async def get(self, cid: Cid) -> bytes | None: ...

    async def put(self, blocks: list[Block], *, durable: bool) -> None:
        """Hashes are the caller's business. Raises `DiskFull`."""
        ...

    async def sync(self, cids: Iterable[Cid]) -> None:
        """Blocks that are here are on the disk when this returns. Raises `BlockMissing`."""
        ...

    async def pin(self, cid: Cid, reason: str | None) -> None:
        """None unpins."""
        ...

    def pins(self) -> dict[str, str]: ...

    def count(self) -> tuple[int, int]:
        """(blocks, bytes)."""
        ...


class BlocksOnDisk:
    """`Blocks` under one folder; open it once per process."""

    def __init__(self, folder: Path, settings: StoreSettings) -> None:
        self._folder = folder
        self._disk = DiskBlocks(folder, reserve_bytes=settings.reserve_bytes, synced_memory=settings.synced_memory)
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

    async def get(self, cid: Cid) -> bytes | None:
        return await trio.to_thread.run_sync(self._disk.get, cid, limiter=self._threads)

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

    async def pin(self, cid: Cid, reason: str | None) -> None:
        await self._changes.submit([(cid.text, reason)])

    def pins(self) -> dict[str, str]:
        return self._pins.all()

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

    def __init__(self) -> None:
        self._blocks: dict[str, bytes] = {}
        self._pins: dict[str, str] = {}

    async def has(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        return cid.text in self._blocks

    async def size(self, cid: Cid) -> int | None:
        await trio.lowlevel.checkpoint()
        return len(self._blocks[cid.text]) if cid.text in self._blocks else None

    async def get(self, cid: Cid) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._blocks.get(cid.text)

    async def put(self, blocks: list[Block], *, durable: bool) -> None:
        await trio.lowlevel.checkpoint()
        self._blocks.update((block.cid.text, block.data) for block in blocks)

    async def sync(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()

    async def pin(self, cid: Cid, reason: str | None) -> None:
        await trio.lowlevel.checkpoint()
        if reason is None:
            self._pins.pop(cid.text, None)
        else:
            self._pins[cid.text] = reason

    def pins(self) -> dict[str, str]:
        return dict(self._pins)

    def count(self) -> tuple[int, int]:
        return len(self._blocks), sum(map(len, self._blocks.values()))
